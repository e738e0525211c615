"""INT8 on a CPU: products of integers against dequantizing weights in every run, and sums that overflow without VNNI.

An INT8 bundle's decoder as it is lowered now and as it was before, without `IntegerProducts`; one row behind a prompt
of 256 random tokens, by turns. And one product of 1,024 inputs and 512 outputs in ONNX Runtime, from the same in
float64, by its default and with the entry that our engines have: random normal values, and the largest ones of either
sign.

    r1v-export build CHECKPOINT --precision int8 --samples 4 --no-parity -o BUNDLE
    python benchmarks/int8_products.py BUNDLE

Results: benchmarks/results/<date>-int8-products.json.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import click
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from measure import RESULTS, interleaved, machine, write_results

from r1v_export import contract
from r1v_export.bundle import Bundle
from r1v_export.cpus import thread_count
from r1v_export.runner.kv_cache import KVCache
from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
from r1v_export.targets.onnxruntime.session_options import EXACT_INT8
from r1v_export.targets.onnxruntime.write import graphs

PROMPT, CAPACITY = 256, 512
INPUTS, OUTPUTS = 1024, 512
PRODUCT = f"""<ir_version: 10, opset_import: ["": 21]> g (float[n,{INPUTS}] x) => (float[n,{OUTPUTS}] y)
    <float s, int8 z, int8[{INPUTS},{OUTPUTS}] w, float[{OUTPUTS}] sw> {{
    q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
    e = DequantizeLinear <axis=1> (w, sw)  y = MatMul(d, e) }}"""


def decoder(bundle: Bundle, folder: Path, steps: int, threads: int) -> Callable[[], dict[str, float]]:
    """A reading of the engine in a folder: seconds of the prompt, milliseconds of a step."""
    engine = OnnxRuntimeEngine(folder, bundle.folder, bundle.spec.sizes, "cpu", threads)
    shape = (1, PROMPT, bundle.spec.sizes.hidden)
    tokens = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * np.float32(0.02)

    def measure() -> dict[str, float]:
        cache, start = KVCache(engine.decoder(1, CAPACITY)), time.perf_counter()
        cache.append(tokens, np.array([PROMPT]))
        prompt_s = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(steps):
            cache.append(tokens[:, :1], np.array([1]))
        return {"prompt_s": prompt_s, "step_ms": (time.perf_counter() - start) / steps * 1e3}

    return measure


def relative_error(kind: str, tokens: int, entry: str) -> float:
    """Of the product, in ONNX Runtime, with a value of the entry."""
    random = np.random.default_rng(tokens)
    if kind == "normal":
        x, weight = random.standard_normal((tokens, INPUTS)), random.standard_normal((INPUTS, OUTPUTS))
        qweight = np.rint(weight / np.abs(weight).max(axis=0) * 127)
    else:
        x = np.where(random.random((tokens, INPUTS)) < 0.9, 1.0, -1.0)
        qweight = np.full((INPUTS, OUTPUTS), 127) * np.where(np.arange(OUTPUTS) % 2, 1, -1)
    scale = np.float32(np.abs(x).max() / 127)
    constants = {
        "s": scale,
        "z": np.int8(0),
        "w": qweight.astype(np.int8),
        "sw": np.full(OUTPUTS, 1 / 127, np.float32),
    }
    model = ir.from_onnx_text(PRODUCT, initializers=[ir.tensor(value, name=name) for name, value in constants.items()])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(EXACT_INT8, entry)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x.astype(np.float32)})[0]
    rounded = np.clip(np.rint(x.astype(np.float32) / scale), -128, 127).astype(np.float64) * scale
    expected = rounded @ (qweight / 127)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--turns", default=3, show_default=True)
@click.option("--threads", default=thread_count().count, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(bundle: Path, turns: int, threads: int, results: Path) -> None:
    opened = Bundle.open(bundle)
    report = {"machine": machine(("onnxruntime", "numpy")), "threads": threads, "turns": turns, "prompt": PROMPT}
    report["relative_error"] = {
        f"{kind}, {tokens} tokens, entry {entry}": relative_error(kind, tokens, entry)
        for kind in ("normal", "largest")
        for tokens in (1, 9, 256)
        for entry in ("0", "1")
    }
    with tempfile.TemporaryDirectory(dir=opened.folder / "engines") as before:
        with mock.patch.object(graphs, "multiply_integers", return_value=False):
            graphs.write_graphs(opened.folder / "graphs", [contract.DECODER], "cpu", "exact", Path(before))
        contenders = {
            "integers": decoder(opened, opened.folder / "engines" / "onnxruntime", 48, threads),
            "dequantized": decoder(opened, Path(before), 4, threads),
        }
        report["decoder"] = interleaved(contenders, turns)
    click.echo(write_results("int8-products", report, results))


if __name__ == "__main__":
    main()
