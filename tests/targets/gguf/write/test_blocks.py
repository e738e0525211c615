"""Blocks against gguf-py's own, and what half precision cannot hold."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from r1v_export.errors import UsageError
from r1v_export.targets.gguf.write.blocks import Blocks, encode_blocks, encode_plain


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_that_gguf_py_made_come_out_the_same(kind: str) -> None:
    qtype = gguf.GGMLQuantizationType[kind]
    weight = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    expected = gguf.quants.quantize(weight, qtype)
    blocks = expected.reshape(5, 3, -1)
    scale = torch.from_numpy(blocks[..., :2].copy().view(np.float16).astype(np.float32))[..., 0]
    minimum = None
    if kind == "Q4_1":
        minimum = torch.from_numpy(blocks[..., 2:4].copy().view(np.float16).astype(np.float32))[..., 0]
    offset = torch.zeros_like(scale) if minimum is None else minimum
    dequantized = torch.from_numpy(gguf.quants.dequantize(expected, qtype)).unflatten(1, (3, 32))
    values = ((dequantized - offset[..., None]) / scale[..., None]).round().to(torch.int8)
    assert np.array_equal(encode_blocks(Blocks(kind, values, scale, minimum), "w"), expected)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1"])
def test_plain_tensors_are_gguf_pys(kind: str) -> None:
    tensor = torch.randn(3, 64, dtype=torch.bfloat16)
    qtype = gguf.GGMLQuantizationType[kind]
    expected = gguf.quants.quantize(tensor.float().numpy(), qtype).view(np.uint8)
    assert np.array_equal(encode_plain(tensor, kind, "w"), expected.reshape(3, -1))


def test_what_half_precision_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="too large for half precision"):
        encode_plain(torch.tensor([[70000.0]]), "F16", "w")
    with pytest.raises(UsageError, match="too large for half precision"):
        encode_plain(torch.full((1, 32), float("nan")), "Q5_0", "w")
    blocks = Blocks("Q8_0", torch.ones(1, 1, 32, dtype=torch.int8), torch.tensor([[70000.0]]))
    with pytest.raises(UsageError, match="too large for half precision"):
        encode_blocks(blocks, "w")
