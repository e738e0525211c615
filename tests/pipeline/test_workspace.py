"""The output folder of a build: whole files or none, one build at a time, and a memory that can be trusted."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from r1v_export.errors import UsageError
from r1v_export.hashed_files import file_identity
from r1v_export.manifest import MANIFEST, Manifest, StageEntry, verify
from r1v_export.pipeline.workspace import HashCache, Workspace, kept_folder, open_workspace, unfinished_bytes
from tests.manifests import manifest_of

A, B = "a" * 64, "b" * 64


def run_stage(workspace: Workspace, stage: str, fingerprint: str, **files: str) -> StageEntry:
    """Write `files` (their names with `_` for `/`) as a stage and commit it."""
    folder = workspace.begin(stage, fingerprint).folder
    for name, text in files.items():
        path = folder / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return workspace.commit(stage, fingerprint)


def finish(workspace: Workspace, **stages: StageEntry) -> Manifest:
    manifest = manifest_of(stages)
    workspace.finish(manifest)
    return manifest


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_bundle_holds_product_files_only_and_verifies(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        finish(workspace, one=run_stage(workspace, "one", A, graphs_x="x", y="y"))
    assert tree(tmp_path).keys() == {"graphs/x", "y", MANIFEST}
    assert not (tmp_path / ".work").exists()
    verify(tmp_path)


def test_nothing_of_a_running_stage_is_seen_in_the_bundle(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        (workspace.begin("one", A).folder / "x").write_text("half")
    assert [path.name for path in tmp_path.iterdir()] == [".work"]


def test_what_a_killed_stage_left_is_not_taken_up(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        (workspace.begin("one", A).folder / "old").write_text("half")
    with open_workspace(tmp_path) as workspace:
        assert workspace.done("one", A) is None
        assert run_stage(workspace, "one", A, new="whole").files.keys() == {"new"}
    assert not (tmp_path / "old").exists()


def test_a_finished_stage_is_remembered_by_its_fingerprint(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        entry = run_stage(workspace, "one", A, x="x")
    with open_workspace(tmp_path) as workspace:
        assert workspace.done("one", A) == entry
        assert workspace.done("one", B) is None
        assert workspace.done("two", A) is None


def test_a_finished_stage_whose_file_changed_or_vanished_is_not_done(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        run_stage(workspace, "one", A, x="x")
        run_stage(workspace, "two", A, y="y")
    (tmp_path / "x").write_text("z")
    (tmp_path / "y").unlink()
    with open_workspace(tmp_path) as workspace:
        assert workspace.done("one", A) is None
        assert workspace.done("two", A) is None


def test_a_whole_bundle_is_its_own_memory(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        entry = run_stage(workspace, "one", A, x="x")
        finish(workspace, one=entry)
    with open_workspace(tmp_path) as workspace:
        assert workspace.done("one", A) == entry


def test_a_bundle_under_change_has_no_manifest_and_keeps_its_memory(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        entry = run_stage(workspace, "one", A, x="x")
        finish(workspace, one=entry, two=run_stage(workspace, "two", A, y="y"))
    with open_workspace(tmp_path) as workspace:
        workspace.begin_changes()
        assert not (tmp_path / MANIFEST).exists()
    with open_workspace(tmp_path) as workspace:
        assert workspace.done("one", A) == entry


def test_files_that_a_stage_no_longer_writes_go(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        finish(workspace, one=run_stage(workspace, "one", A, old_x="x", y="y"))
    with open_workspace(tmp_path) as workspace:
        workspace.begin_changes()
        finish(workspace, one=run_stage(workspace, "one", B, y="y2"))
    assert tree(tmp_path).keys() == {"y", MANIFEST}
    assert not (tmp_path / "old").exists()


def test_files_of_a_stage_that_is_no_more_go(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        one = run_stage(workspace, "one", A, x="x")
        finish(workspace, one=one, two=run_stage(workspace, "two", A, y="y"))
    with open_workspace(tmp_path) as workspace:
        workspace.begin_changes()
        finish(workspace, one=one)
    verify(tmp_path)


def test_a_damaged_memory_makes_the_stage_run_again(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        run_stage(workspace, "one", A, x="x")
    (tmp_path / ".work/done/one.json").write_text("{")
    (tmp_path / ".work/hashes.json").write_text("{")
    with open_workspace(tmp_path) as workspace:
        assert workspace.done("one", A) is None


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="other files"), open_workspace(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="not a folder"), open_workspace(tmp_path / "out"):
        pass


def test_two_builds_in_one_folder_are_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with open_workspace(tmp_path):
        with pytest.raises(UsageError, match="Another build") as caught, open_workspace(tmp_path):
            pass
        assert caught.value.found == f"process {os.getpid()}"


def _hold_lock(folder: Path, ready) -> None:
    with open_workspace(folder):
        ready.set()
        signal.pause()


def test_the_lock_of_a_killed_build_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold_lock, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(UsageError, match="Another build"), open_workspace(tmp_path):
        pass
    holder.kill()
    holder.join()
    with open_workspace(tmp_path):
        pass


def test_a_known_hash_is_not_computed_again_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1" * 10)
    cache = HashCache(tmp_path / "hashes.json")
    assert cache.known(file) is None
    first = cache.get(file)
    cache.put(file, first.model_copy(update={"sha256": "f" * 64}), file_identity(file.stat()))
    cache.save()
    known = HashCache(tmp_path / "hashes.json")
    assert known.get(file).sha256 == "f" * 64
    os.utime(file, ns=(0, 0))
    assert known.known(file) is None
    assert known.get(file) == first
    other = shutil.copy(file, tmp_path / "other")
    os.utime(other, ns=(0, 0))
    Path(other).replace(file)
    assert known.known(file) is None, "another inode"


def test_the_report_of_a_failed_gate_is_kept_outside_the_product(tmp_path: Path) -> None:
    with open_workspace(tmp_path) as workspace:
        report = workspace.begin("parity", A).folder / "report"
        report.mkdir()
        (report / "parity.html").write_text("bad")
        assert workspace.keep_report("parity") == tmp_path / "report/local"
    assert (tmp_path / "report/local/parity.html").read_text() == "bad"


def test_a_file_with_two_names_is_counted_once_and_one_that_others_have_not_at_all(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_bytes(bytes(1 << 20))
    out = tmp_path / "out"
    with open_workspace(out) as workspace:
        folder, kept = workspace.begin("one", A).folder, kept_folder(out, "one")
        for path in (folder, kept):
            path.mkdir(parents=True, exist_ok=True)
        (folder / "own").write_bytes(bytes(1 << 16))
        os.link(folder / "own", kept / "own")
        os.link(checkpoint, folder / "linked")
        assert unfinished_bytes(out, ["one", "two"]) == (folder / "own").stat().st_blocks * 512 > 0
