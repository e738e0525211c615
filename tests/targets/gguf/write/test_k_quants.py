"""K-quants read by gguf-py; their error against that of ggml's own quantizer, as measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from r1v_export.cpus import use_threads
from r1v_export.errors import UsageError
from r1v_export.targets.gguf.write.k_quants import encode_k_quants

KINDS = ("Q4_K", "Q5_K", "Q6_K")
BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


def decoded(data: np.ndarray, kind: str) -> np.ndarray:
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])


def error(weight: np.ndarray, kind: str) -> float:
    """Root of the squared error over that of the weights."""
    found = decoded(encode_k_quants(torch.from_numpy(weight), kind, "w"), kind)
    return float(np.linalg.norm(found - weight) / np.linalg.norm(weight))


def _ggml() -> list[dict[str, Any]]:
    path = sorted((BENCHMARKS / "results").glob("*-llama-cpp-quantizers.json"))[-1]
    rows = json.loads(path.read_text(encoding="utf-8"))["random"]
    assert {row["kind"] for row in rows} >= set(KINDS)
    return [row for row in rows if row["kind"] in KINDS]


@pytest.mark.parametrize("row", _ggml(), ids=lambda row: f"{row['kind']} {row['weights']}")
def test_the_error_is_at_most_one_percent_above_that_of_ggmls_own_quantizer(row, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from llama_cpp_quantizers import random_weights

    assert error(random_weights(row["weights"]), row["kind"]) < 1.01 * row["ggml"]


@pytest.mark.parametrize(("kind", "levels"), [("Q4_K", 15), ("Q5_K", 31)])
def test_what_scales_and_minima_hold_exactly_comes_back_exactly(kind: str, levels: int) -> None:
    random = np.random.default_rng(0)
    scales, minima = (random.integers(20, 64, (40, 8, 1)) for _ in range(2))
    scales[:, 3], minima[:, 5] = 63, 63
    values = random.integers(0, levels + 1, (40, 8, 32))
    values[..., :2] = 0, levels
    weight = (values * scales / 1024 - minima / 128).astype(np.float32).reshape(5, -1)
    assert np.array_equal(decoded(encode_k_quants(torch.from_numpy(weight), kind, "w"), kind), weight)


def test_what_q6_k_holds_exactly_comes_back_exactly() -> None:
    random = np.random.default_rng(0)
    scales = random.integers(-127, 128, (40, 16, 1))
    scales[:, 3] = -128
    values = random.integers(-31, 32, (40, 16, 16))
    values[..., 0] = -32
    weight = (values * scales / 1024).astype(np.float32).reshape(5, -1)
    assert np.array_equal(decoded(encode_k_quants(torch.from_numpy(weight), "Q6_K", "w"), "Q6_K"), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_constant_zero_and_tiny_weights_keep_their_size(kind: str) -> None:
    zero = np.zeros((2, 256), np.float32)
    assert not decoded(encode_k_quants(torch.from_numpy(zero), kind, "w"), kind).any()
    for value in (0.3, -0.3):
        assert error(zero + np.float32(value), kind) < 1e-3
    assert error(np.random.default_rng(0).standard_normal((8, 512), np.float32) * np.float32(1e-6), kind) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_neither_threads_nor_rows_around_it_change_a_rows_bytes(kind: str) -> None:
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 256 * 90), np.float32)).bfloat16()
    whole = encode_k_quants(weight, kind, "w")
    assert np.array_equal(whole, np.concatenate([encode_k_quants(row[None], kind, "w") for row in weight]))
    use_threads(1)
    try:
        assert np.array_equal(encode_k_quants(weight, kind, "w"), whole)
    finally:
        use_threads(None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [1e9, float("inf"), float("nan")])
def test_what_half_precision_cannot_scale_is_refused(kind: str, value: float) -> None:
    weight = torch.zeros(1, 256)
    weight[0, 7] = value
    with pytest.raises(UsageError, match="too large for half precision"):
        encode_k_quants(weight, kind, "w")
