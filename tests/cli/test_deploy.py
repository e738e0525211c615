"""What `deploy` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.cli.deploy import _print


def test_the_summary_wraps_and_the_folder_in_it_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = Path("/srv/deployments/a-folder-that-is-longer-than-a-line")
    _print(out, [out / "README.md"], f"{out}: 1 file; README.md says how to build and run it", "text")
    assert capsys.readouterr().out == f"{out}:\n1 file; README.md says how to build and\nrun it\n"
