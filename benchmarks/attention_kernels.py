"""ONNX Runtime's two CPU kernels of GroupQueryAttention: in tiles, its default and ours, and with all scores at once.

One operator as our decoders have it, float32, past and present in one buffer, of the shapes of Qwen2.5's 0.5B and 32B;
new tokens of one row behind others. Turns are taken; the ratio is the median time of the default over that of the
other, which a variable of the environment chooses when a session is made.

    python benchmarks/attention_kernels.py [--threads 2] [--repeats 15]
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import onnxruntime as ort
from measure import interleaved, machine, ratio, write_results
from onnx import TensorProto, helper

from r1v_export.cpus import thread_count

VARIABLE = "ORT_GQA_DISABLE_FLASH_ATTENTION"
KERNELS = {"tiled (default)": "0", "all scores at once": "1"}
SHAPES = {"0.5B": (14, 2, 64), "32B": (40, 8, 128)}
"""Heads, heads of keys and values, features of a head."""
NEW_TOKENS = (1, 4, 64, 512)


def attention(heads: int, kv_heads: int, head_dim: int) -> bytes:
    """A graph of one GroupQueryAttention that rotates queries and keys."""
    float32, int32, cache = TensorProto.FLOAT, TensorProto.INT32, [1, kv_heads, "capacity", head_dim]
    floats = {"query": [1, "new", heads * head_dim]}
    floats |= {name: [1, "new", kv_heads * head_dim] for name in ("key", "value")}
    floats |= dict.fromkeys(("past_key", "past_value"), cache)
    rotary = {name: ["positions", head_dim // 2] for name in ("cos", "sin")}
    values = [helper.make_tensor_value_info(name, float32, shape) for name, shape in floats.items()]
    values += [helper.make_tensor_value_info(name, int32, shape) for name, shape in (("less_one", [1]), ("length", []))]
    values += [helper.make_tensor_value_info(name, float32, shape) for name, shape in rotary.items()]
    outputs = {"output": [1, "new", heads * head_dim], "present_key": cache, "present_value": cache}
    results = [helper.make_tensor_value_info(name, float32, shape) for name, shape in outputs.items()]
    node = helper.make_node(
        "GroupQueryAttention",
        [value.name for value in values],
        list(outputs),
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
        do_rotary=1,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "attention", values, results)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def session(shape: tuple[int, int, int], kernel: str, threads: int) -> ort.InferenceSession:
    """A session whose attention is computed by one of the kernels."""
    os.environ[VARIABLE] = KERNELS[kernel]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(attention(*shape), options)


def step(shape: tuple[int, int, int], opened: ort.InferenceSession, length: int, new: int) -> Callable[[], None]:
    """One run over `new` tokens, the last of `length`, all arrays bound."""
    heads, kv_heads, head_dim = shape
    random, binding = np.random.default_rng(0), opened.io_binding()
    widths = {"query": heads, "key": kv_heads, "value": kv_heads}
    arrays = {
        name: random.standard_normal((1, new, n * head_dim), dtype=np.float32) * 0.3 for name, n in widths.items()
    }
    arrays |= {"less_one": np.array([length - 1], np.int32), "length": np.array(length, np.int32)}
    arrays |= {name: random.standard_normal((length, head_dim // 2), dtype=np.float32) for name in ("cos", "sin")}
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    cache = [random.standard_normal((1, kv_heads, length + 64, head_dim), dtype=np.float32) for _ in range(2)]
    for name, array in zip(("key", "value"), cache, strict=True):
        memory = ("cpu", 0, np.float32, array.shape, array.ctypes.data)
        binding.bind_input(f"past_{name}", *memory)
        binding.bind_output(f"present_{name}", *memory)
    output = np.empty((1, new, heads * head_dim), np.float32)
    binding.bind_output("output", "cpu", 0, np.float32, output.shape, output.ctypes.data)
    kept = arrays, values, cache, output

    def run() -> None:
        assert kept
        opened.run_with_iobinding(binding)

    return run


def timed(run: Callable[[], None], runs: int) -> Callable[[], dict[str, float]]:
    def measure() -> dict[str, float]:
        begin = time.perf_counter()
        for _ in range(runs):
            run()
        return {"ms": (time.perf_counter() - begin) / runs * 1e3}

    return measure


@click.command()
@click.option("--length", "lengths", type=int, multiple=True, default=(1024, 4096, 16384), show_default=True)
@click.option("--threads", default=thread_count().count, show_default=True)
@click.option("--repeats", default=9, show_default=True)
def main(lengths: tuple[int, ...], threads: int, repeats: int) -> None:
    """Measure both kernels, and write the results."""
    results: list[dict[str, Any]] = []
    content = {"machine": machine(("onnxruntime", "numpy")), "threads": threads, "results": results}
    for name, shape in SHAPES.items():
        opened = {kernel: session(shape, kernel, threads) for kernel in KERNELS}
        for length, new in itertools.product(lengths, NEW_TOKENS):
            # Several short runs make a reading.
            runs = {kernel: step(shape, opened[kernel], length, new) for kernel in KERNELS}
            count = max(1, round(2e8 / (shape[0] * shape[2] * length * new)))
            contenders = {kernel: timed(run, count) for kernel, run in runs.items()}
            readings = interleaved(contenders, repeats if new < 512 else 3)
            default, other = KERNELS
            faster = ratio(readings, default, other, "ms")
            results.append({"shape": name, "length": length, "new": new, "default_over_other": faster, "ms": readings})
            click.echo(f"{name:5} {new:4} new tokens, the last of {length:6}: {faster:.2f} times as fast")
    click.echo(write_results("attention-kernels", content))


if __name__ == "__main__":
    main()
