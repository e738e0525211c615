"""Activations between blocks: the same from memory and from files, and kept for a run that follows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from r1v_export.errors import BundleError
from r1v_export.quantization.calibration import activations
from r1v_export.quantization.calibration.activations import Activations, SavePolicy

ONE_BYTES = 40
ALWAYS = SavePolicy(soonest_s=0.0)
NEVER = SavePolicy(soonest_s=math.inf)


def tensor(sample: int, block: int) -> Tensor:
    return torch.arange(10.0) + 100 * sample + 1000 * block


def saving(folder: Path, limit: int, policy: SavePolicy = ALWAYS, *, together: bool = False) -> Activations:
    """Activations of four samples that are saved at every block."""
    return Activations(folder, range(4), limit, policy, together=together)


def put_all(store: Activations, samples: int = 4) -> None:
    for sample in range(samples):
        store.put(sample, tensor(sample, store.block + 1))


def take_all(store: Activations, samples: int = 4) -> None:
    for sample in range(samples):
        assert torch.equal(store.take(sample), tensor(sample, store.block))


def run_blocks(store: Activations, count: int, share_bytes: float = math.inf) -> None:
    """Take the samples through so many blocks, as far as an earlier run has not."""
    for _ in range(count):
        for sample in range(4):
            if store.begins_at(sample) <= store.block:
                if store.block:
                    assert torch.equal(store.take(sample), tensor(sample, store.block))
                store.put(sample, tensor(sample, store.block + 1))
        store.advance(share_bytes)


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files_at(*blocks: int) -> list[str]:
    """The names of the files of samples 0, 1, ... at a block each."""
    return [f"{sample:05}-{block:04}.data" for sample, block in enumerate(blocks)]


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
        assert stored(tmp_path) == files_at(*[block + 1] * 4)
    take_all(store)


def test_no_more_is_held_in_memory_than_the_limit(tmp_path: Path) -> None:
    store = saving(tmp_path, 2 * ONE_BYTES)
    put_all(store)
    store.advance()
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert [torch.equal(store.take(sample), tensor(sample, 1)) for sample in range(2)] == [True, True]
    with pytest.raises(BundleError, match="activations of a block are damaged") as caught:
        store.take(2)
    assert caught.value.where == tmp_path / "00002-0001.data"


@pytest.mark.parametrize("value", [torch.ones(3).bfloat16(), torch.ones(0, 5), torch.ones(2, 1, 3).double()])
def test_dtypes_and_shapes_survive_the_disk(tmp_path: Path, value: Tensor) -> None:
    store = saving(tmp_path, 0)
    store.put(0, value)
    store.advance()
    taken = store.take(0)
    assert (taken.dtype, taken.shape) == (value.dtype, value.shape)
    assert torch.equal(taken, value)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_a_run_that_follows_starts_at_the_block_that_the_last_one_reached(
    tmp_path: Path, limit: int, together: bool
) -> None:
    store = saving(tmp_path, limit, together=together)
    run_blocks(store, 3)
    store.put(0, tensor(0, 4))  # and here it stops
    again = saving(tmp_path, limit, together=together)
    assert again.resume_at(3) == 3
    take_all(again)
    assert stored(tmp_path) == files_at(3, 3, 3, 3)


@pytest.mark.parametrize("together", [False, True])
def test_a_block_can_be_computed_again_until_the_next_one_begins(tmp_path: Path, together: bool) -> None:
    store = saving(tmp_path, 0, together=together)
    run_blocks(store, 1)
    put_all(store)  # and here it stops: the block's linears are not quantized yet
    again = saving(tmp_path, 0, together=together)
    assert again.resume_at(1) == 1
    take_all(again)


def test_activations_of_a_later_block_than_is_done_are_of_no_use(tmp_path: Path) -> None:
    run_blocks(saving(tmp_path, 0), 2)
    assert saving(tmp_path, 0).resume_at(1) == 0
    assert not stored(tmp_path)


def test_what_a_killed_run_had_not_written_to_its_end_is_removed(tmp_path: Path) -> None:
    run_blocks(saving(tmp_path, 0), 2)
    (tmp_path / ".00001-0003.data.unfinished").write_bytes(b"{")
    (tmp_path / "0002.json").write_bytes(b"{}")
    assert saving(tmp_path, 0).resume_at(2) == 2
    assert stored(tmp_path) == files_at(2, 2, 2, 2)


def test_nothing_is_written_of_what_fits_into_memory_until_it_is_due(tmp_path: Path) -> None:
    store = saving(tmp_path, 4 * ONE_BYTES, NEVER)
    run_blocks(store, 3)
    assert not stored(tmp_path)
    assert all(torch.equal(store.take(sample, again=True), tensor(sample, store.block)) for sample in range(4))
    store.policy = ALWAYS
    run_blocks(store, 1)
    assert stored(tmp_path) == files_at(4, 4, 4, 4)


def test_of_a_block_that_does_not_fit_only_the_rest_is_written(tmp_path: Path) -> None:
    store = saving(tmp_path, 2 * ONE_BYTES, NEVER)
    run_blocks(store, 1)
    assert stored(tmp_path) == ["00002-0001.data", "00003-0001.data"]
    again = saving(tmp_path, 0)
    assert again.resume_at(1) == 0
    assert [again.begins_at(sample) for sample in range(4)] == [0, 0, 1, 1]


def test_samples_are_saved_in_turn_and_a_run_that_follows_goes_on_with_each_where_it_was(tmp_path: Path) -> None:
    store = saving(tmp_path, 1 << 20, ALWAYS)
    run_blocks(store, 6, share_bytes=ONE_BYTES)
    assert stored(tmp_path) == files_at(5, 6, 3, 4)
    again = saving(tmp_path, 1 << 20)
    assert again.resume_at(6) == 3
    run_blocks(again, 3)
    take_all(again)


def test_samples_that_are_saved_together_wait_until_all_of_them_may_be(tmp_path: Path) -> None:
    store = saving(tmp_path, 1 << 20, ALWAYS, together=True)
    run_blocks(store, 3, share_bytes=ONE_BYTES)
    assert not stored(tmp_path)
    run_blocks(store, 3, share_bytes=ONE_BYTES)
    assert stored(tmp_path) == files_at(4, 4, 4, 4)
    again = saving(tmp_path, 1 << 20, together=True)
    assert again.resume_at(6) == 4
    run_blocks(again, 2)
    take_all(again)


def test_samples_of_one_block_stay_until_all_have_files_of_a_later_one(tmp_path: Path) -> None:
    """Half of them do not fit into memory, and are written at every block."""
    store = saving(tmp_path, 2 * ONE_BYTES, together=True)
    run_blocks(store, 1)
    store.policy = NEVER
    run_blocks(store, 3)
    assert stored(tmp_path) == sorted([*files_at(1, 1, 1, 1), "00002-0004.data", "00003-0004.data"])
    again = saving(tmp_path, 2 * ONE_BYTES, together=True)
    assert again.resume_at(4) == 1
    take_all(again)
    assert stored(tmp_path) == files_at(1, 1, 1, 1)


class Clock:
    """Stands for the time module."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def saved_and_repeated(
    folder: Path, block_s: float, model_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, float]:
    """Bytes that a calibration saves by default, and seconds of work that a kill makes it repeat at the worst moment.

    Args:
        block_s: of each of 100 blocks.
        model_bytes: 24 samples bring 317 kB to each block.
    """
    clock, policy = Clock(), SavePolicy()
    monkeypatch.setattr(activations, "time", clock)
    store = Activations(folder, range(24), 1 << 20, policy)
    write, sizes = store._write, list[int]()

    def weighed(sample: int, block: int, tensor: Tensor) -> None:
        sizes.append(tensor.nbytes)
        write(sample, block, tensor)

    monkeypatch.setattr(store, "_write", weighed)
    repeated = []
    for block in range(100):
        for sample in range(24):
            if block:
                store.take(sample)
            store.put(sample, torch.zeros(3300))
        clock.now += block_s
        repeated.append(sum(block + 1 - store.begins_at(sample) for sample in range(24)) / 24)
        store.advance(policy.share * model_bytes / 100)
    return sum(sizes), max(repeated) * block_s


def test_what_is_saved_is_bounded_by_a_share_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of the default calibration of a 38B in FP8 on two cores: 48 minutes, a model of 40 GB. All that is
    between blocks every five minutes, as it once was, is 2.8 MB."""
    written, repeated_s = saved_and_repeated(tmp_path, 29.0, 40_000_000, monkeypatch)
    assert 0.5 * 800_000 < written <= 800_000
    assert repeated_s < 11 * 60


def test_a_kill_repeats_five_minutes_where_the_share_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, repeated_s = saved_and_repeated(tmp_path, 120.0, 10**9, monkeypatch)
    assert 120 < repeated_s <= 420


@pytest.mark.parametrize("model_bytes", [0, 1_000_000, 40_000_000])
def test_a_calibration_of_many_hours_saves_no_more_than_the_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_bytes: int
) -> None:
    """A full calibration of a 38B takes half a day; saved every hour, its samples were 1.0 of the model."""
    written, _ = saved_and_repeated(tmp_path, 430.0, model_bytes, monkeypatch)
    assert 0.5 * SavePolicy().share * model_bytes <= written <= SavePolicy().share * model_bytes


def test_a_calibration_of_a_few_minutes_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saved_and_repeated(tmp_path, 2.9, 10**9, monkeypatch)[0] == 0
    assert not stored(tmp_path)


@pytest.mark.parametrize("header", [b"{}\n", b"\xff\n", b'{"dtype": "float32", "shape": [9, 9]}\n'])
def test_a_damaged_header_is_named(tmp_path: Path, header: bytes) -> None:
    run_blocks(saving(tmp_path, 0), 1)
    (tmp_path / "00000-0001.data").write_bytes(header)
    again = saving(tmp_path, 0)
    assert again.resume_at(1) == 1
    with pytest.raises(BundleError, match="activations of a block are damaged") as caught:
        again.take(0)
    assert caught.value.where == tmp_path / "00000-0001.data"
