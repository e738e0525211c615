"""Tensors of a GGUF file, in float32 without a second copy."""

from __future__ import annotations

import weakref
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from r1v_export.checkpoint.gguf import file as gguf_file
from r1v_export.checkpoint.gguf.file import GgufFile

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1")
ROWS, COLUMNS = 10, 512


@pytest.fixture
def content(tmp_path: Path) -> GgufFile:
    """A matrix of every kind, a vector, and a tensor of four axes."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    rng = np.random.default_rng(0)
    values_RC = rng.standard_normal((ROWS, COLUMNS), dtype=np.float32)
    for kind in KINDS:
        data = values_RC if kind == "F32" else gguf.quants.quantize(values_RC, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(kind, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.add_tensor("vector", values_RC[0])
    writer.add_tensor("axes", values_RC.reshape(2, 5, 32, 16).astype(np.float16))
    writer.add_token_list(["a", "b"])
    writer.add_block_count(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(tmp_path / "a.gguf")


@pytest.mark.parametrize("name", [*KINDS, "vector", "axes"])
def test_float32_is_what_is_read_a_few_rows_at_a_time(
    name: str, content: GgufFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "_VALUES_AT_ONCE", 3 * COLUMNS)
    expected, dequantized, sizes = content.read(name).float(), GgufFile._dequantized, list[int]()

    def spied(self: GgufFile, name: str, data: np.ndarray) -> Tensor:
        part = dequantized(self, name, data)
        sizes.append(part.numel())
        return part

    monkeypatch.setattr(GgufFile, "_dequantized", spied)
    found = content.read_float32(name)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert max(sizes) <= 3 * COLUMNS
    assert sum(sizes) == expected.numel()


def test_lists_are_forgotten_and_nothing_else(content: GgufFile) -> None:
    """Of the tokens of a bundle's file gguf-py held as much as a head's quarter, through the whole gate."""
    tokens = weakref.ref(content._fields["tokenizer.ggml.tokens"].parts[-1])
    assert content.value("tokenizer.ggml.tokens") == ["a", "b"]
    content.forget_lists()
    assert tokens() is None
    assert content.value("tokenizer.ggml.tokens") is None
    assert content.required("llama.block_count", int) == 3
    assert content.read("F32").shape == (ROWS, COLUMNS)
