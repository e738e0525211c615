"""Where processes keep what they would work out again."""

from __future__ import annotations

import os
import shutil
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest

from r1v_export import user_cache
from r1v_export.user_cache import VARIABLE, Entry
from tests.targets.child_processes import SPAWN, WAIT_S, kill_at, run_all, start, stop_at

NOBODY = 65_534
FILES = ("a", "b")


@pytest.fixture
def entry(tmp_path) -> Entry:
    return entry_of(tmp_path, "decoder")


def entry_of(folder: Path, graph: str, key: str = "key") -> Entry:
    """Of a graph that is there."""
    (folder / graph).touch()
    return Entry(folder / "cache" / "target", folder / graph, f"group-of-{graph}", key, 100)


def keep(entry: Entry, content: str = "content", both: Barrier | None = None) -> None:
    """Keep a content, twice, so that a mixture of two is seen."""
    with entry.scratch() as scratch:
        assert scratch is not None
        for name in FILES:
            (scratch / name).write_text(content)
        if both is not None:
            both.wait(WAIT_S)
        entry.keep(scratch)


def contents(entry: Entry) -> list[str]:
    return [(entry.folder / name).read_text() for name in FILES]


def names(entry: Entry) -> list[str]:
    return sorted(path.name for path in entry.cache.iterdir())


def test_the_folder_is_the_users_and_a_user_without_a_home_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache.cache_folder("openvino") == tmp_path / "r1v-export" / "openvino"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(user_cache.Path, "home", homeless)
    assert user_cache.cache_folder("openvino") is None


@pytest.mark.parametrize(("value", "off"), [("off", True), ("on", False), (None, False)])
def test_the_user_can_switch_it_off(monkeypatch, value, off):
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert user_cache.is_off() is off


def test_a_file_that_is_written_again_has_another_state(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"1234")
    before = user_cache.file_states([path])
    assert user_cache.file_states([path]) == before
    os.utime(path, ns=(0, 1))
    assert user_cache.file_states([path]) != before


def test_an_entry_has_its_name_once_it_is_whole_and_is_the_users_alone(entry):
    with entry.scratch() as scratch:
        (scratch / "a").touch()
        assert not entry.is_kept()
        entry.keep(scratch)
        assert entry.is_kept()
    assert names(entry) == [entry.folder.name]
    assert [path.stat().st_mode & 0o777 for path in (entry.cache, entry.folder)] == [0o700, 0o700]


def test_what_is_not_kept_in_the_block_goes_with_it(entry):
    def fail() -> None:
        with entry.scratch() as scratch:
            (scratch / "a").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert names(entry) == []


@pytest.mark.parametrize(("free_bytes", "written"), [(400, True), (399, False)])
def test_a_quarter_of_the_free_space_is_taken_at_most(free_bytes, written, entry, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(user_cache.shutil, "disk_usage", lambda _: usage._replace(free=free_bytes))
    with entry.scratch() as scratch:
        assert (scratch is not None) is written
    assert ("nothing is kept" in caplog.text) is not written


def test_a_folder_that_cannot_be_made_is_no_error(entry, caplog):
    caplog.set_level("INFO")
    entry.cache.parent.touch()
    assert not entry.is_kept()
    with entry.scratch() as scratch:
        assert scratch is None
    (record,) = caplog.records
    assert f"{entry.source}: nothing is kept: " in record.getMessage()


def _find_nothing(entry: Entry) -> None:
    if os.geteuid() == 0:  # whom no mode keeps out
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    assert not entry.is_kept()
    with entry.scratch() as scratch:
        assert scratch is None


def test_a_folder_that_the_user_may_not_enter_is_no_error(entry):
    keep(entry)
    entry.cache.parent.chmod(0)
    try:
        run_all(start(_find_nothing, entry))
    finally:
        entry.cache.parent.chmod(0o700)


def test_two_processes_at_once_end_with_one_whole_entry(entry):
    both = SPAWN.Barrier(2)
    run_all(*(start(keep, entry, content, both) for content in ("first", "second")))
    assert names(entry) == [entry.folder.name]
    assert contents(entry) in (["first"] * 2, ["second"] * 2)


def test_two_processes_at_once_keep_different_graphs(entry, tmp_path):
    both, other = SPAWN.Barrier(2), entry_of(tmp_path, "vision")
    run_all(*(start(keep, each, "content", both) for each in (entry, other)))
    assert names(entry) == sorted([entry.folder.name, other.folder.name])


def _keep_half(entry: Entry, reached: Event) -> None:
    with entry.scratch() as scratch:
        (scratch / FILES[0]).write_text("half")
        stop_at(reached)


def test_what_a_killed_process_leaves_is_never_taken_for_whole_and_goes_after_a_day(entry, tmp_path):
    reached = SPAWN.Event()
    kill_at(reached, start(_keep_half, entry, reached))
    assert not entry.is_kept()
    (left,) = names(entry)
    keep(entry, "whole")
    assert contents(entry) == ["whole"] * 2
    assert names(entry) == sorted([left, entry.folder.name])  # its process might still be writing
    os.utime(entry.cache / left, (0, 0))
    keep(entry_of(tmp_path, "vision"))
    assert left not in names(entry)


def test_the_latest_of_a_group_stays_and_what_is_of_graphs_that_are_gone_goes(tmp_path):
    first, second, gone = entry_of(tmp_path, "decoder"), entry_of(tmp_path, "decoder", "2"), entry_of(tmp_path, "gone")
    for each in (first, gone):
        keep(each)
    (first.cache / "of another version").touch()
    (first.cache / "link").symlink_to(tmp_path)
    gone.source.unlink()
    other = entry_of(tmp_path, "vision")
    keep(other)
    assert names(first) == sorted([first.folder.name, other.folder.name])
    keep(second)
    assert names(first) == sorted([second.folder.name, other.folder.name])
    assert tmp_path.is_dir()


def test_what_another_process_removes_or_renames_meanwhile_is_no_error(entry, tmp_path, monkeypatch, caplog):
    """Cleaning goes on behind it."""
    caplog.set_level("INFO")
    real, stale = Path.iterdir, entry_of(tmp_path, "stale")
    keep(stale)
    stale.source.unlink()

    def iterdir(folder: Path) -> list[Path]:
        gone = [folder / ".gone", folder / "gone"] if folder == entry.cache else []
        return [*gone, *real(folder)]

    monkeypatch.setattr(user_cache.Path, "iterdir", iterdir)
    keep(entry)
    assert [path.name for path in real(entry.cache)] == [entry.folder.name]
    assert "nothing is kept" not in caplog.text


def test_what_is_damaged_is_made_anew(entry, caplog):
    caplog.set_level("INFO")
    keep(entry, "before")
    (entry.folder / FILES[0]).unlink()
    entry.discard(ValueError("a file is missing"))
    assert not entry.is_kept()
    keep(entry, "after")
    assert contents(entry) == ["after"] * 2
    assert "what was kept cannot be used: a file is missing" in caplog.text


@pytest.mark.parametrize(("from_bytes", "level"), [(1, "WARNING"), (1000, "INFO")])
def test_what_takes_much_of_the_disk_is_reported(from_bytes, level, entry, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(user_cache, "REPORTED_FROM_BYTES", from_bytes)
    keep(entry)
    (record,) = caplog.records
    assert record.levelname == level
    assert f"in {entry.folder}; {VARIABLE}=off keeps nothing" in record.getMessage()
