"""Files hashed while they are written: the hash of what is in them, or none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

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
