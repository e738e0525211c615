"""An interrupted stage goes on with what it had written, if that is still what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from r1v_export.checkpoint.tensor_writer import NewTensor, write_tensors
from r1v_export.hashed_files import WrittenHashes, record_hashes
from r1v_export.write_journal import WriteJournal

NAMES = "abcdef"


@pytest.fixture(autouse=True)
def _every_part_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1v_export.hashed_files.NOTED_BYTES", 0)


def journal(root: Path, key: str = "key") -> WriteJournal:
    opened = WriteJournal(root / "journal.json", root / "stage", key)
    opened.prepare()
    return opened


def write(root: Path, stop_at: str = "", key: str = "key", shards: int = 2) -> tuple[list[str], WrittenHashes]:
    """Write six tensors; returns those that were computed, and the hashes. A run is interrupted where asked to."""
    computed: list[str] = []

    def compute(name: str) -> list[Tensor]:
        if name == stop_at:
            raise KeyboardInterrupt
        computed.append(name)
        return [torch.full((100,), ord(name), dtype=torch.uint8), torch.arange(28, dtype=torch.uint8)]

    def chunks(name: str) -> Callable[[], Sequence[Tensor]]:
        return lambda: compute(name)

    tensors = [NewTensor(name, torch.uint8, (128,), chunks(name)) for name in NAMES]
    with record_hashes(journal(root, key)) as hashes:
        try:
            progress = [*write_tensors(root / "stage", tensors, shards=shards)]
            assert progress[-1] == 6 * 128
        except KeyboardInterrupt:
            pass
    return computed, hashes


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "stage").iterdir()}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    assert write(tmp_path / "whole")[0] == [*NAMES]
    return files(tmp_path / "whole")


@pytest.mark.parametrize("shards", [1, 2, 6])
@pytest.mark.parametrize("stop_at", NAMES)
def test_what_was_written_is_not_computed_again_and_the_bytes_are_the_same(
    tmp_path: Path, stop_at: str, shards: int
) -> None:
    write(tmp_path / "whole", shards=shards)
    before, _ = write(tmp_path, stop_at, shards=shards)
    after, hashes = write(tmp_path, shards=shards)
    assert before + after == [*NAMES]
    assert files(tmp_path) == files(tmp_path / "whole")
    for path in (tmp_path / "stage").glob("*.safetensors"):
        assert hashes.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert write(tmp_path, shards=shards)[0] == []


def test_interrupted_again_and_again_it_ends(tmp_path: Path, whole: dict[str, bytes]) -> None:
    computed = [write(tmp_path, stop_at)[0] for stop_at in "abcdef"]
    assert computed == [[], *([name] for name in "abcde")]
    write(tmp_path)
    assert files(tmp_path) == whole


def test_bytes_that_a_power_cut_took_are_written_anew(tmp_path: Path, whole: dict[str, bytes]) -> None:
    write(tmp_path, "c")
    path = tmp_path / "stage" / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert write(tmp_path)[0] == [*NAMES]
    assert files(tmp_path) == whole


def test_a_finished_file_that_was_changed_is_written_anew(tmp_path: Path, whole: dict[str, bytes]) -> None:
    write(tmp_path, "f")
    path = tmp_path / "stage" / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert write(tmp_path)[0] == ["a", "b", "c", "f"]
    assert files(tmp_path) == whole


def test_what_was_written_for_another_key_is_removed(tmp_path: Path) -> None:
    write(tmp_path, "f")
    journal(tmp_path, "other")
    assert files(tmp_path) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"key": "key", "files": {"model-00001-of-00002.safetensors": [1]}}'])
def test_a_damaged_journal_makes_the_stage_begin_anew(tmp_path: Path, whole: dict[str, bytes], text: str) -> None:
    write(tmp_path, "f")
    (tmp_path / "journal.json").write_text(text)
    assert write(tmp_path)[0] == [*NAMES]
    assert files(tmp_path) == whole


def test_files_that_the_journal_does_not_know_are_removed(tmp_path: Path) -> None:
    write(tmp_path, "f")
    (tmp_path / "stage" / "folder").mkdir()
    (tmp_path / "stage" / "folder" / "other").write_text("half")
    journal(tmp_path)
    assert sorted(files(tmp_path)) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_files_elsewhere_are_written_as_ever(tmp_path: Path) -> None:
    tensor = NewTensor("a", torch.uint8, (2,), lambda: [torch.zeros(2, dtype=torch.uint8)])
    for _ in range(2):
        with record_hashes(journal(tmp_path)) as hashes:
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            assert [*write_tensors(tmp_path / "elsewhere", [tensor], file="x")] == [2]
        assert hashes.sha256(tmp_path / "elsewhere" / "x")
    assert not (tmp_path / "journal.json").exists()


def test_files_that_are_written_side_by_side_are_all_noted(tmp_path: Path) -> None:
    opened = journal(tmp_path)
    paths = [tmp_path / "stage" / name for name in NAMES]
    for path in paths:
        path.write_bytes(b"x" * 50)

    def note(path: Path) -> None:
        for size_bytes in range(50):
            opened.note(path, size_bytes + 1, hashlib.sha256(b"x" * (size_bytes + 1)).hexdigest(), finished=False)

    with ThreadPoolExecutor(len(paths)) as pool:
        assert [*pool.map(note, paths)] == [None] * len(paths)
    again = journal(tmp_path)
    assert [again.find(path, [50]) is not None for path in paths] == [True] * len(paths)
