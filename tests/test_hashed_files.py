"""Files hashed while they are written: the hash of what is in them, or none."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from r1v_export import hashed_files
from r1v_export.hashed_files import open_hashed, record_hashes


def write(path: Path, *parts: bytes) -> None:
    with open_hashed(path) as file:
        for part in parts:
            assert file.write(part) == len(part)
        assert file.tell() == sum(map(len, parts))


def test_the_hash_is_that_of_the_bytes_in_the_file(tmp_path: Path) -> None:
    with record_hashes() as written:
        write(tmp_path / "a", b"one", memoryview(b"two"), b"")
        write(tmp_path / "b")
    assert written.sha256(tmp_path / "a") == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert written.sha256(tmp_path / "b") == hashlib.sha256(b"").hexdigest()


def test_a_moved_file_keeps_its_hash_and_a_changed_one_loses_it(tmp_path: Path) -> None:
    with record_hashes() as written:
        write(tmp_path / "a", b"content")
        write(tmp_path / "b", b"content")
    moved = (tmp_path / "a").rename(tmp_path / "c")
    assert written.sha256(moved) == hashlib.sha256(b"content").hexdigest()
    with (tmp_path / "b").open("ab") as file:
        file.write(b"!")
    assert written.sha256(tmp_path / "b") is None


def test_other_files_have_no_hash(tmp_path: Path) -> None:
    write(tmp_path / "before", b"x")
    with record_hashes() as written:
        (tmp_path / "other").write_bytes(b"x")
    write(tmp_path / "after", b"x")
    assert [written.sha256(tmp_path / name) for name in ("before", "other", "after")] == [None] * 3


def test_a_file_whose_writing_failed_has_no_hash(tmp_path: Path) -> None:
    def fail() -> None:
        with open_hashed(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyError

    with record_hashes() as written, pytest.raises(KeyError):
        fail()
    assert written.sha256(tmp_path / "a") is None


def test_writing_waits_while_as_much_as_allowed_is_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed_files, "QUEUE_BYTES", 10)
    monkeypatch.setattr(hashed_files, "_SYNC_BYTES", 1)
    go_on = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: go_on.wait())

    def write_all() -> None:
        with record_hashes() as written:
            write(tmp_path / "a", b"1" * 10, b"2" * 100, b"3" * 4, b"4" * 6, b"5")
        found.append(written.sha256(tmp_path / "a"))

    found: list[str | None] = []
    writer = threading.Thread(target=write_all)
    writer.start()
    writer.join(0.05)
    assert writer.is_alive()
    go_on.set()
    writer.join()
    content = b"1" * 10 + b"2" * 100 + b"3" * 4 + b"4" * 6 + b"5"
    assert (tmp_path / "a").read_bytes() == content
    assert found == [hashlib.sha256(content).hexdigest()]


class Noting:
    """A digest that says when it has seen bytes."""

    def __init__(self, wanted: bytes) -> None:
        self.wanted, self.seen = wanted, threading.Event()

    def update(self, piece: bytes) -> None:
        if bytes(piece) == self.wanted:
            self.seen.set()

    def hexdigest(self) -> str:
        return "0"


def test_more_is_written_while_the_disk_takes_what_was_written_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashed_files, "_SYNC_BYTES", 10)
    went_on: list[bool] = []
    file, digest = open_hashed(tmp_path / "a"), Noting(b"2" * 5)
    monkeypatch.setattr(file, "_digest", digest)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: went_on.append(digest.seen.wait(20)))
    with file:
        file.write(b"1" * 10)
        file.write(b"2" * 5)
    assert went_on == [True]


def test_what_is_written_is_hashed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, digest, hashed_first = open_hashed(tmp_path / "a"), Noting(b"1"), list[bool]()

    class Slow(io.BufferedWriter):
        def write(self, piece: Any) -> int:
            hashed_first.append(digest.seen.wait(20))
            return super().write(piece)

    file._file.close()
    monkeypatch.setattr(file, "_file", Slow(io.FileIO(tmp_path / "a", "w")))
    monkeypatch.setattr(file, "_digest", digest)
    with file:
        file.write(b"1")
    assert hashed_first == [True]
    assert (tmp_path / "a").read_bytes() == b"1"


@pytest.mark.parametrize("writes", [1, 3])
def test_an_error_of_the_disk_reaches_whoever_writes(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hashed_files, "QUEUE_BYTES", 2)
    monkeypatch.setattr(hashed_files, "_SYNC_BYTES", 1)
    monkeypatch.setattr(os, "fdatasync", full)
    with record_hashes() as written, pytest.raises(OSError, match="No space"):
        write(tmp_path / "a", *[b"12"] * writes)
    assert written.sha256(tmp_path / "a") is None


def test_what_waits_is_not_written_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed_files, "_SYNC_BYTES", 1)
    file = open_hashed(tmp_path / "a")

    def wait_for_the_end(descriptor: int) -> None:
        with file._changed:
            file._changed.wait_for(lambda: file._ended)

    monkeypatch.setattr(os, "fdatasync", wait_for_the_end)

    def fail() -> None:
        with file:
            file.write(b"1")
            file.write(b"2")
            file.write(b"3")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "a").read_bytes() in (b"", b"1", b"12")


def test_beyond_a_part_of_the_memory_the_system_need_not_keep_what_the_disk_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[tuple[int, int]] = []
    monkeypatch.setattr(hashed_files, "available_bytes", lambda: 20)
    monkeypatch.setattr(hashed_files, "_SYNC_BYTES", 2)
    monkeypatch.setattr(hashed_files, "forget_part", lambda _, begin, end: forgotten.append((begin, end)))
    with record_hashes():
        write(tmp_path / "a", b"12", b"34", b"56")
        write(tmp_path / "b", b"78")
    assert forgotten == [(4, 6), (0, 2)]
