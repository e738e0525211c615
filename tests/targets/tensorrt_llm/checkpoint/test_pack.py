"""4-bit packing, against the format's description bit by bit, for any weight."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from r1v_export.targets.tensorrt_llm.checkpoint.decode import undo_interleave
from r1v_export.targets.tensorrt_llm.checkpoint.pack import interleave, pack_outputs

seeds = st.integers(0, 2**31 - 1)


def qweight(seed: int, out_features: int, in_features: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 8, (out_features, in_features), generator=generator, dtype=torch.int8)


@given(seeds, st.integers(1, 9), st.integers(1, 33))
def test_two_neighboring_output_channels_share_a_byte_the_even_one_in_its_low_half(seed, pairs, in_features):
    weight = qweight(seed, 2 * pairs, in_features)

    packed = pack_outputs(weight)

    assert packed.dtype == torch.int8
    assert packed.shape == (pairs, in_features)
    for row in range(pairs):
        for column in range(in_features):
            byte = int(packed[row, column]) % 256
            even, odd = int(weight[2 * row, column]) % 16, int(weight[2 * row + 1, column]) % 16
            assert byte == even + 16 * odd


@given(seeds, st.integers(1, 4))
def test_packing_shards_is_sharding_what_is_packed(seed, ranks):
    weight = qweight(seed, 8 * ranks, 16 * ranks)

    by_outputs = torch.cat([pack_outputs(part) for part in weight.chunk(ranks, 0)], 0)
    by_inputs = torch.cat([pack_outputs(part) for part in weight.chunk(ranks, 1)], 1)

    assert torch.equal(by_outputs, pack_outputs(weight))
    assert torch.equal(by_inputs, pack_outputs(weight))


@given(seeds, st.integers(1, 3), st.integers(1, 3), st.sampled_from([80, 90]))
def test_the_reader_finds_every_code_that_the_kernel_would(seed, outputs, inputs, layout):
    weight = qweight(seed, 8 * outputs, 64 * inputs)

    assert torch.equal(undo_interleave(interleave(weight, layout), layout), weight)


def inputs_of(thread: int) -> list[int]:
    """Published for 16-bit activations: thread t multiplies inputs 2t, 2t + 1 of each 8."""
    return [block + 2 * thread + member for block in (0, 8, 16, 24) for member in (0, 1)]


def test_a_thread_of_the_matrix_instruction_finds_its_eight_inputs_together():
    for thread in range(4):
        weight = torch.full((8, 64), -8, dtype=torch.int8)
        weight[0, inputs_of(thread)] = torch.arange(-7, 1, dtype=torch.int8)

        words = interleave(weight, 90).flatten()[:16].view(4, 4)

        halves = [half for byte in words[thread].tolist() for half in (byte & 15, byte >> 4)]
        assert sorted(halves) == list(range(1, 9))
        assert int(words.sum()) == int(words[thread].sum())


def test_quantized_values_become_unsigned_with_the_even_ones_of_a_word_in_its_low_half():
    """One output channel that counts its inputs; on Hopper nothing else is moved."""
    weight = torch.zeros(8, 64, dtype=torch.int8)
    weight[0, :32] = torch.arange(32).remainder(16) - 8

    word = interleave(weight, 90).flatten()[:4].tolist()

    unsigned = [int(weight[0, i]) + 8 for i in inputs_of(0)]
    halves = [half for byte in word for half in (byte & 15, byte >> 4)]
    assert halves == unsigned[0::2] + unsigned[1::2]


def test_a_weight_is_laid_out_a_few_output_channels_at_a_time(monkeypatch):
    weight = qweight(0, 24, 192)
    whole = {layout: interleave(weight, layout) for layout in (80, 90)}
    monkeypatch.setattr("r1v_export.targets.tensorrt_llm.checkpoint.pack.BLOCK_VALUES", 8 * 192)
    assert all(torch.equal(interleave(weight, layout), found) for layout, found in whole.items())
