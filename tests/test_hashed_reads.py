"""Files hashed while others read them: the right hash, not far from the readers, and errors where someone waits."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from r1v_export import hashed_reads
from r1v_export.errors import CheckpointError
from r1v_export.hashed_files import file_identity
from r1v_export.hashed_reads import FileHash, ReadHashes, note_read

PIECE = 1000


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed_reads, "_PIECE_BYTES", PIECE)
    monkeypatch.setattr(hashed_reads, "AHEAD_BYTES", (PIECE, PIECE))
    monkeypatch.setattr(hashed_reads, "BEHIND_BYTES", 2 * PIECE)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a", "b", "empty")]
    for path, content in zip(paths, (b"1" * 10 * PIECE, b"2" * 5 * PIECE, b""), strict=True):
        path.write_bytes(content)
    return paths


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def until(hashes: ReadHashes, path: Path, hashed: int) -> None:
    """Wait until so many bytes of a file are hashed, and the thread has nothing left to do."""
    with hashes._changed:
        assert hashes._changed.wait_for(lambda: hashes._reads[path].hashed >= hashed, 60)


def test_all_hashes_are_found_whether_someone_reads_or_not(files: list[Path]) -> None:
    with ReadHashes(files) as hashes:
        note_read(files[1], 0, 5 * PIECE)
        hashes.finish()
    assert {path: found.sha256 for path, found in hashes.found.items()} == {path: sha256(path) for path in files}
    assert {path: found.identity for path, found in hashes.found.items()} == {
        path: file_identity(path.stat()) for path in files
    }


def test_as_much_is_hashed_as_was_asked_for_and_a_little_more(files: list[Path]) -> None:
    with ReadHashes(files) as hashes:
        note_read(files[0], 7 * PIECE, 2 * PIECE)
        until(hashes, files[0], 3 * PIECE)
        note_read(files[0], 7 * PIECE, 2 * PIECE)
        note_read(files[1], 0, 5 * PIECE)
        until(hashes, files[1], 5 * PIECE)
        assert hashes._reads[files[0]].hashed == 3 * PIECE, "the same part again counts once"
    assert hashes.found.keys() <= {files[1]}


def test_overlapping_parts_count_once(files: list[Path]) -> None:
    """Otherwise a reader of rows of a tensor that another reads whole waits for a hash that does not lag behind."""
    with ReadHashes(files) as hashes:
        for offset, size_bytes in ((4, 2), (0, 2), (1, 4), (2, 1), (8, 1)):
            note_read(files[0], offset * PIECE, size_bytes * PIECE)
        reads = hashes._reads[files[0]]
        assert (reads.asked, reads.parts) == (7 * PIECE, [(0, 6 * PIECE), (8 * PIECE, 9 * PIECE)])


def test_a_file_whose_parts_were_all_read_is_found_without_being_waited_for(files: list[Path]) -> None:
    with ReadHashes(files) as hashes:
        for offset in (4, 0, 1, 2, 3):
            note_read(files[1], offset * PIECE, PIECE)
        with hashes._changed:
            assert hashes._changed.wait_for(lambda: files[1] in hashes.found, 60)
    assert hashes.found.keys() == {files[1]}


def test_readers_wait_for_a_hash_that_lags_behind(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, advance = threading.Event(), FileHash.advance
    monkeypatch.setattr(FileHash, "advance", lambda file, buffer: go_on.wait() and advance(file, buffer))
    with ReadHashes(files) as hashes:
        for offset in range(3):
            note_read(files[0], offset * PIECE, PIECE)
        reader = threading.Thread(target=note_read, args=(files[0], 3 * PIECE, PIECE))
        reader.start()
        reader.join(0.05)
        assert reader.is_alive()
        go_on.set()
        reader.join()
        until(hashes, files[0], 4 * PIECE)


def test_a_file_that_ends_early_is_an_error_for_readers_and_for_whoever_waits(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Longer(FileHash):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.size_bytes += path == files[0]

    monkeypatch.setattr(hashed_reads, "FileHash", Longer)
    with ReadHashes(files) as hashes:
        with pytest.raises(CheckpointError, match="cannot be read") as caught:
            hashes.finish()
        with pytest.raises(CheckpointError, match="cannot be read"):
            note_read(files[0], 0, PIECE)
    assert caught.value.where == str(files[0])
    assert caught.value.found == f"it ends at byte {10 * PIECE} of {10 * PIECE + 1}"


def test_a_file_that_vanished_is_named(files: list[Path]) -> None:
    hashes = ReadHashes(files)
    files[1].unlink()
    with hashes, pytest.raises(CheckpointError, match="cannot be read") as caught:
        hashes.finish()
    assert caught.value.where == str(files[1])


def test_after_the_end_and_for_other_files_a_read_is_noted_nowhere(files: list[Path], tmp_path: Path) -> None:
    with ReadHashes(files[:1]) as hashes:
        note_read(tmp_path / "other", 0, 10**9)
    note_read(files[0], 0, 10 * PIECE)
    assert hashes.found == {}
    assert hashes._reads[files[0]].asked == 0


@pytest.mark.parametrize(("available", "forgets"), [(1 << 40, False), (10 * PIECE, True)])
def test_what_is_read_and_long_hashed_is_given_up_where_memory_does_not_hold_all(
    available: int, forgets: bool, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up: list[tuple[Path, int, int]] = []
    monkeypatch.setattr(hashed_reads, "available_bytes", lambda: available)
    monkeypatch.setattr(hashed_reads, "LEFT_BYTES", PIECE)
    monkeypatch.setattr(FileHash, "forget", lambda file, begin, end: given_up.append((file.path, begin, end)))
    with ReadHashes(files) as hashes:
        note_read(files[0], 0, 4 * PIECE)
        until(hashes, files[0], 4 * PIECE)
        hashes.finish()
    # Not the last three pieces of all, and nothing that nobody asked for.
    assert given_up == [(files[0], n * PIECE, (n + 1) * PIECE) for n in range(4 if forgets else 0)]


def test_giving_up_memory_changes_no_byte(files: list[Path]) -> None:
    file = FileHash(files[0])
    file.forget(0, 10 * PIECE)
    buffer = bytearray(PIECE)
    while file.advance(buffer):
        pass
    file.close()
    assert file.sha256 == sha256(files[0])
