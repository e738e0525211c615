"""Files of tensors that follow each other: written, each begun before the last one is on the disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from r1v_export.checkpoint.tensor_writer import NewTensor, write_tensors
from r1v_export.hashed_files import HashedFile

BYTES = 8


def tensor(name: str, begun: threading.Event) -> NewTensor:
    def chunks() -> Iterator[Tensor]:
        begun.set()
        yield torch.full((BYTES,), int(name), dtype=torch.uint8)

    return NewTensor(name, torch.uint8, (BYTES,), chunks)


def test_a_file_is_begun_while_the_one_before_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, write_all = [threading.Event() for _ in range(3)], HashedFile._write_all
    in_time: list[bool] = []

    def write_all_later(file: HashedFile, *threads: object) -> None:
        number = int(file._path.name.split("-")[1])
        in_time.append(number == len(begun) or begun[number].wait(60))
        write_all(file, *threads)  # type: ignore[arg-type]

    monkeypatch.setattr(HashedFile, "_write_all", write_all_later)
    tensors = [tensor(str(number), begun[number]) for number in range(len(begun))]
    assert sum(write_tensors(tmp_path, tensors, shards=3)) == sum(BYTES * (number + 1) for number in range(3))
    assert in_time == [True] * 3
    for number, path in enumerate(sorted(tmp_path.glob("*.safetensors"))):
        assert load_file(path)[str(number)].tolist() == [number] * BYTES
