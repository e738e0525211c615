"""Activations between blocks: the same from memory and from files, and kept for a run that follows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from r1v_export.errors import BundleError
from r1v_export.quantization.calibration.activations import Activations

ONE_BYTES = 40


def tensor(sample: int, block: int) -> Tensor:
    return torch.arange(10.0) + 100 * sample + 1000 * block


def saving(folder: Path, limit: int) -> Activations:
    """Activations that are saved at every block."""
    return Activations(folder, limit, save_after_s=0.0)


def put_all(store: Activations, samples: int = 4) -> None:
    for sample in range(samples):
        store.put(sample, tensor(sample, store.block + 1))


def take_all(store: Activations, samples: int = 4) -> None:
    for sample in range(samples):
        assert torch.equal(store.take(sample), tensor(sample, store.block))


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("limit", [0, 2 * ONE_BYTES, 1 << 20])
def test_what_is_taken_is_what_was_put_wherever_it_was_kept(tmp_path: Path, limit: int) -> None:
    store = saving(tmp_path, limit)
    put_all(store)
    store.advance()
    for block in range(1, 4):
        for sample in reversed(range(4)):
            assert torch.equal(store.take(sample), tensor(sample, store.block))
            store.put(sample, tensor(sample, store.block + 1))
        store.advance()
        assert stored(tmp_path) == [f"000{block + 1}.data", f"000{block + 1}.json"]
    take_all(store)


def test_no_more_is_held_in_memory_than_the_limit(tmp_path: Path) -> None:
    store = saving(tmp_path, 2 * ONE_BYTES)
    put_all(store)
    store.advance()
    (tmp_path / "0001.data").write_bytes(b"")
    assert [torch.equal(store.take(sample), tensor(sample, 1)) for sample in range(2)] == [True, True]
    with pytest.raises(BundleError, match="activations of a block are damaged"):
        store.take(2)


@pytest.mark.parametrize("value", [torch.ones(3).bfloat16(), torch.ones(0, 5), torch.ones(2, 1, 3).double()])
def test_dtypes_and_shapes_survive_the_disk(tmp_path: Path, value: Tensor) -> None:
    store = saving(tmp_path, 0)
    store.put(0, value)
    store.advance()
    taken = store.take(0)
    assert (taken.dtype, taken.shape) == (value.dtype, value.shape)
    assert torch.equal(taken, value)


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_a_run_that_follows_starts_at_the_block_that_the_last_one_reached(tmp_path: Path, limit: int) -> None:
    store = saving(tmp_path, limit)
    for _ in range(3):
        put_all(store)
        store.advance()
    store.put(0, tensor(0, 4))  # and here it stops
    again = saving(tmp_path, limit)
    assert again.resume_at(3) == 3
    take_all(again)
    assert stored(tmp_path) == ["0003.data", "0003.json"]


def test_a_block_can_be_computed_again_until_the_next_one_begins(tmp_path: Path) -> None:
    store = saving(tmp_path, 0)
    put_all(store)
    store.advance()
    put_all(store)
    store.complete()  # and here it stops: the block's linears are not quantized yet
    again = saving(tmp_path, 0)
    assert again.resume_at(1) == 1
    take_all(again)


def test_activations_of_a_later_block_than_is_done_are_of_no_use(tmp_path: Path) -> None:
    store = saving(tmp_path, 0)
    for _ in range(2):
        put_all(store)
        store.advance()
    assert saving(tmp_path, 0).resume_at(1) == 0
    assert not stored(tmp_path)


def test_activations_that_are_not_complete_are_not_taken_for_whole(tmp_path: Path) -> None:
    put_all(saving(tmp_path, 0), samples=2)
    assert saving(tmp_path, 0).resume_at(1) == 0
    assert not stored(tmp_path)


def test_nothing_is_written_of_what_fits_into_memory_until_it_is_due(tmp_path: Path) -> None:
    store = Activations(tmp_path, 4 * ONE_BYTES, math.inf)
    for _ in range(3):
        put_all(store)
        store.advance()
        assert not stored(tmp_path)
        assert all(torch.equal(store.take(sample, again=True), tensor(sample, store.block)) for sample in range(4))
        take_all(store)
    store.save_after_s = 0.0
    put_all(store)
    store.advance()
    assert stored(tmp_path) == ["0004.data", "0004.json"]


def test_a_block_that_does_not_fit_is_saved_whole(tmp_path: Path) -> None:
    store = Activations(tmp_path, 2 * ONE_BYTES, math.inf)
    put_all(store)
    store.advance()
    take_all(saved_at(tmp_path, 1))


def test_what_was_saved_stays_until_a_later_block_is(tmp_path: Path) -> None:
    store = saving(tmp_path, 1 << 20)
    put_all(store)
    store.advance()
    store.save_after_s = math.inf
    for _ in range(2):
        take_all(store)
        put_all(store)
        store.advance()
    assert stored(tmp_path) == ["0001.data", "0001.json"]
    take_all(saved_at(tmp_path, 1))


def saved_at(folder: Path, block: int) -> Activations:
    """What a run that follows begins with."""
    again = saving(folder, 0)
    assert again.resume_at(9) == block
    return again


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    store = saving(tmp_path, 0)
    put_all(store)
    store.advance()
    (tmp_path / "0001.json").write_text("{}")
    with pytest.raises(BundleError, match="index of a block's activations is damaged") as caught:
        saving(tmp_path, 0).resume_at(1)
    assert caught.value.where == tmp_path / "0001.json"
