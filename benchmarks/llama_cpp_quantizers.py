"""The errors of our K-quants next to those of ggml's own quantizer, and what Q4_K would lose of calibrated INT4.

    PYTHONPATH=. .venv/bin/python benchmarks/llama_cpp_quantizers.py --environment /tmp/llama

Calls `ggml_quantize_chunk` in the library of llama_cpp_oracle.py's environment, which is made if it is not there, on
random weights and on every matrix of r1v-nano's language model. gguf-py dequantizes both. Errors are relative: the root
of the squared error over that of the weights. Results: benchmarks/results/<date>-llama-cpp-quantizers.json.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from llama_cpp_oracle import PACKAGE, make_environment
from measure import machine, write_results

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.groups import linear_shapes
from r1v_export.targets.gguf.write.blocks import encode_plain

KINDS = ("Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1", "Q8_0")
RANDOM = ("normal", "laplace", "student, 4 degrees", "normal of 1e-3", "uniform above 1")
SHAPE = (64, 1024)


def random_weights(name: str) -> np.ndarray:
    """Weights of a distribution, the same every time."""
    random = np.random.default_rng(0)
    draw = {
        "normal": lambda: random.standard_normal(SHAPE),
        "laplace": lambda: random.laplace(size=SHAPE),
        "student, 4 degrees": lambda: random.standard_t(4, SHAPE),
        "normal of 1e-3": lambda: 1e-3 * random.standard_normal(SHAPE),
        "uniform above 1": lambda: 1 + random.random(SHAPE),
    }[name]
    return np.asarray(draw(), np.float32)


class Ggml:
    """ggml's quantizers."""

    def __init__(self, environment: Path) -> None:
        make_environment(environment)
        (library,) = environment.glob("lib/python3*/site-packages/xllamacpp/xllamacpp*.so")
        self._quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._quantize.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]

    def encode(self, weight: np.ndarray, kind: str) -> np.ndarray:
        """The bytes of a matrix, without an importance matrix."""
        number = gguf.GGMLQuantizationType[kind]
        per_block, size = gguf.GGML_QUANT_SIZES[number]
        rows, columns = weight.shape
        data = np.zeros((rows, columns // per_block * size), np.uint8)
        written = self._quantize(int(number), weight.ctypes.data, data.ctypes.data, 0, rows, columns, None)
        assert written == data.nbytes
        return data


def relative(found: np.ndarray, weight: np.ndarray) -> float:
    return float(np.linalg.norm(found - weight) / np.linalg.norm(weight))


def row_of(weight: np.ndarray, name: str, kind: str, ggml: Ggml) -> dict[str, Any]:
    """Both errors."""
    own, theirs = encode_plain(torch.from_numpy(weight), kind, name), ggml.encode(weight, kind)
    number = gguf.GGMLQuantizationType[kind]
    errors = [round(relative(gguf.quants.dequantize(data, number), weight), 6) for data in (own, theirs)]
    equal = float((own == theirs).mean())
    return {"weights": name, "kind": kind, "own": errors[0], "ggml": errors[1], "equal_bytes": round(equal, 4)}


def nano_weights() -> Iterator[tuple[str, np.ndarray]]:
    nano = Checkpoint.open()
    for linear in linear_shapes(nano.spec):
        if linear.startswith("language_model."):
            yield linear, nano.read(f"{linear}.weight").float().numpy()


def folded(weight: np.ndarray, group: int, symmetric: bool) -> dict[str, Any]:
    """Round-to-nearest INT4 in groups, and what Q4_K, and Q4_0 or Q4_1, lose of it."""
    groups = weight.reshape(-1, 256 // group, group)
    if symmetric:
        scale, zero = np.abs(groups).max(-1) / 7, np.full(groups.shape[:2], 8.0)
    else:
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scale = (high - low) / 15
        zero = np.round(-low / scale)
    values = np.clip(np.round(groups / scale[..., None] + zero[..., None]), 0, 15)
    exact = (values - zero[..., None]) * scale[..., None]
    times = 8 // scale.shape[1]
    scale, minimum = (np.repeat(numbers, times, axis=1) for numbers in (scale, scale * zero))
    values = values.reshape(len(values), 8, 32)
    six_bit = best_six_bits(scale)
    # With zero points of 8 the minimum is 8 times the scale, also in 6 bits; others have scales of their own.
    in_q4_k = values * six_bit[..., None] - (8 * six_bit if symmetric else best_six_bits(minimum))[..., None]
    in_q4_1 = values * half(scale)[..., None] - half(minimum)[..., None]
    exact = exact.reshape(in_q4_k.shape)
    return {
        "group": group,
        "zero_points": not symmetric,
        "int4": round(relative(exact, weight.reshape(exact.shape)), 5),
        "q4_k_of_int4": round(relative(in_q4_k, exact), 6),
        "q4_0_or_q4_1_of_int4": round(relative(in_q4_1, exact), 6),
    }


def best_six_bits(numbers: np.ndarray) -> np.ndarray:
    """Positive numbers [S, 8] as multiples, at most 63, of one in half precision: the best of all such."""
    best, least = np.zeros_like(numbers), np.full(len(numbers), np.inf)
    for most in range(16, 64):
        d = half(numbers.max(1, keepdims=True) / most)
        found = d * np.clip(np.round(numbers / np.where(d == 0, 1, d)), 0, 63)
        error = np.square(found - numbers).sum(1)
        best[error < least] = found[error < least]
        least = np.minimum(error, least)
    return best


def half(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.float16).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, required=True, help="folder of llama.cpp's Python environment")
    ggml = Ggml(parser.parse_args().environment)
    nano = dict(nano_weights())
    joined = np.concatenate([weight.reshape(-1, 256) for weight in nano.values()])
    content = {
        "machine": machine(("torch", "gguf", "numpy")),
        "library": PACKAGE,
        "random": [row_of(random_weights(name), name, kind, ggml) for name in RANDOM for kind in KINDS],
        "nano": [row_of(weight, name, kind, ggml) for name, weight in nano.items() for kind in ("Q4_K", "Q6_K")],
        "int4_of_nano": [folded(joined, group, is_symmetric) for group in (32, 128) for is_symmetric in (True, False)],
    }
    print(write_results("llama-cpp-quantizers", content))


if __name__ == "__main__":
    main()
