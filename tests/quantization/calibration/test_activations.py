"""Activations between blocks: the same whether held or spilled, and kept for a run that follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from r1v_export.quantization.calibration.activations import Activations

ONE_BYTES = 40


def tensor(sample: int, block: int) -> Tensor:
    return torch.arange(10.0) + 100 * sample + 1000 * block


def put_all(store: Activations, samples: int = 4) -> None:
    for sample in range(samples):
        store.put(sample, tensor(sample, store.block + 1))


def take_all(store: Activations, samples: int = 4) -> None:
    for sample in range(samples):
        assert torch.equal(store.take(sample), tensor(sample, store.block))


def spilled(folder: Path) -> int:
    return len(list(folder.rglob("*.safetensors")))


@pytest.mark.parametrize(("limit", "files"), [(0, 4), (2 * ONE_BYTES, 2), (1 << 20, 0)])
def test_what_does_not_fit_into_memory_goes_to_disk(tmp_path: Path, limit: int, files: int) -> None:
    store = Activations(tmp_path, limit)
    put_all(store)
    assert spilled(tmp_path) == files
    store.advance()
    for _ in range(3):
        for sample in range(4):
            assert torch.equal(store.take(sample), tensor(sample, store.block))
            store.put(sample, tensor(sample, store.block + 1))
        store.advance()
        assert spilled(tmp_path) == files
    take_all(store)


def test_memory_that_a_sample_gave_back_is_used_for_the_next_block(tmp_path: Path) -> None:
    store = Activations(tmp_path, 4 * ONE_BYTES)
    put_all(store)
    store.advance()
    take_all(store)
    put_all(store)
    assert spilled(tmp_path) == 0


def test_half_precision_survives_the_disk(tmp_path: Path) -> None:
    store = Activations(tmp_path, 0)
    store.put(0, tensor(1, 1).bfloat16())
    store.advance()
    assert store.take(0).dtype == torch.bfloat16


def test_a_run_that_follows_starts_where_all_activations_are_on_disk(tmp_path: Path) -> None:
    store = Activations(tmp_path, 0)
    for _ in range(3):
        put_all(store)
        store.advance()
    store.put(0, tensor(0, 4))  # and here it stops
    again = Activations(tmp_path, 0)
    assert again.resume_at(3) == 3
    take_all(again)
    assert not (tmp_path / "0004").exists()


def test_activations_of_a_later_block_than_is_done_are_of_no_use(tmp_path: Path) -> None:
    store = Activations(tmp_path, 0)
    put_all(store)
    store.advance()
    put_all(store)
    store.advance()
    assert Activations(tmp_path, 0).resume_at(1) == 0


def test_activations_partly_in_memory_are_not_taken_for_whole(tmp_path: Path) -> None:
    store = Activations(tmp_path, 2 * ONE_BYTES)
    put_all(store)
    store.advance()
    assert Activations(tmp_path, 0).resume_at(1) == 0
    assert spilled(tmp_path) == 0
