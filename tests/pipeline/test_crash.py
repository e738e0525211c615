"""Killed at any moment, a build resumes and ends in the same bytes.

Here: three small stages, killed at every single file operation in turn. `test_resume.py` kills a real build.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from r1v_export.manifest import MANIFEST, verify
from r1v_export.pipeline.run_stages import run_stages
from r1v_export.pipeline.sources import Sources
from r1v_export.pipeline.stage import Make, Stage, StageInputs
from r1v_export.pipeline.workspace import open_workspace
from r1v_export.progress import Progress, ProgressCallback
from tests.manifests import manifest_of

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
"""Audit events of whatever changes a folder."""


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; only a power cut would. The disk is spared."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def writes(**files: str) -> Make:
    def make(folder: Path, inputs: StageInputs, on_progress: ProgressCallback) -> None:
        for name, text in files.items():
            path = folder / name.replace("_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


def stages(version: str) -> list[Stage]:
    return [
        Stage("one", writes(config="same"), code=()),
        Stage("two", writes(graphs_a=version, graphs_b="b"), code=(), settings={"version": version}),
        Stage("three", writes(**{f"engines_{version}": version}), code=(), after=("one", "two")),
    ]


def build(out: Path, version: str, force: bool = False) -> list[str]:
    """Build, and return the names of the stages that ran."""
    with open_workspace(out) as workspace:
        with Sources({}, workspace.hashes, Progress(quiet=True)) as sources:
            finished, ran = run_stages(stages(version), sources, workspace, Progress(quiet=True), force)
        manifest = manifest_of(finished)
        if manifest == workspace.manifest:
            workspace.clear()
        else:
            workspace.finish(manifest)
    return ran


def build_and_die(out: Path, version: str, operations: int) -> bool:
    """Build in a child that kills itself at its n-th file operation. Whether it was killed."""
    child = os.fork()
    if child == 0:
        left = operations

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in OPERATIONS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        build(out, version)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("previous", [None, "v1"], ids=["new", "over-an-older-bundle"])
def test_killed_at_every_file_operation_the_build_ends_in_the_same_bytes(tmp_path: Path, previous: str | None) -> None:
    build(tmp_path / "undisturbed", "v2")
    expected = tree(tmp_path / "undisturbed")
    assert expected.keys() == {"config", "graphs/a", "graphs/b", "engines/v2", MANIFEST}
    moments = 0
    killed = True
    while killed:
        moments += 1
        out = tmp_path / str(moments)
        if previous:
            build(out, previous)
        killed = build_and_die(out, "v2", moments)
        if killed and (out / MANIFEST).exists():
            verify_whole(out)
        build(out, "v2")
        assert tree(out) == expected, f"killed at operation {moments}"
    assert moments > 30


def verify_whole(out: Path) -> None:
    """Where there is a manifest, all that it names is there, unless the workspace tells of the build under way."""
    if not (out / ".work").exists():
        verify(out)


def test_killed_again_and_again_the_build_still_ends(tmp_path: Path) -> None:
    build(tmp_path / "undisturbed", "v2")
    out, attempts = tmp_path / "out", 0
    while build_and_die(out, "v2", 40):
        attempts += 1
        assert attempts < 50
    assert attempts > 1
    assert tree(out) == tree(tmp_path / "undisturbed")


def test_only_what_changed_runs_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert build(out, "v1") == ["one", "two", "three"]
    assert build(out, "v1") == []
    assert build(out, "v2") == ["two", "three"]
    (out / "config").unlink()
    assert build(out, "v2") == ["one"], "it comes out as it was, so what depends on it is still right"


def test_force_runs_all_and_changes_no_byte(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, "v1")
    before = tree(out)
    assert build(out, "v1", force=True) == ["one", "two", "three"]
    assert tree(out) == before
