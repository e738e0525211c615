"""A build that a scheduler ends with SIGTERM: one message, nothing held, and the same bytes in the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r1v_export.cli import main
from r1v_export.exporters import export
from r1v_export.pipeline.workspace import open_workspace


def test_a_build_that_is_terminated_says_so_and_resumes_to_the_same_bytes(
    tiny_model: Path,
    tiny_built: Path,
    tmp_path: Path,
    tree: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, export_graph, exported = tmp_path / "out", export.export_graph, list[str]()

    def terminated(name: str, checkpoint: Any, folder: Path, *rest: Any) -> Path:
        exported.append(name)
        if exported == ["vision", "projector"]:
            (folder / "projector.data").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
        return export_graph(name, checkpoint, folder, *rest)

    monkeypatch.setattr(export, "export_graph", terminated)
    arguments, before = ["build", str(tiny_model), "--no-parity", "-o", str(out)], signal.getsignal(signal.SIGTERM)
    assert main.run(arguments) == 128 + signal.SIGTERM
    printed = capsys.readouterr().err
    assert "Terminated by SIGTERM" in printed
    assert "Traceback" not in printed
    assert signal.getsignal(signal.SIGTERM) == before
    with open_workspace(out) as workspace:
        assert workspace.has_stages
    assert main.run(arguments) == 0
    assert exported == ["vision", "projector", "projector", "embed", "decoder"], "what was finished is not made again"
    assert tree(out) == tree(tiny_built)


@pytest.mark.parametrize(("command", "resumes"), [("build", True), ("calibrate", True), ("run", False)])
def test_only_what_resumes_is_said_to_resume(
    command: str, resumes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.cli, "main", interrupted)
    assert main.run([command]) == 130
    assert ("it resumes" in capsys.readouterr().err) == resumes
