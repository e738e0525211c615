"""The steps of campaign.py: each measures one thing on the machine that it runs on, and returns plain values.

With `tiny` a step does the same on small models, so that a CPU can run all of it.
"""

from __future__ import annotations

import io
import json
import logging
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.gpu import sessions
from benchmarks.hollow import export_hollow, spec_38b
from r1v_export import contract
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.cli import main
from r1v_export.config import BuildConfig, CalibrationConfig, Device
from r1v_export.model_spec import ModelSpec
from r1v_export.pipeline.calibrate import calibrate_alone
from r1v_export.progress import Progress, ignore_progress
from r1v_export.roofline.counts import count
from r1v_export.roofline.devices import DeviceSpec, named_by_driver
from r1v_export.roofline.estimate import layer_times, total

PACKAGES = (
    "torch",
    "triton",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "transformers",
    "tensorrt-rtx-cu13",
)
VOCABULARY = 1024
"""Of decoder slices: the layers are what is measured."""


@dataclass(frozen=True)
class Context:
    """Where a step runs.

    rates: of the step `rates`; empty where that failed.
    """

    device: Device
    tiny: bool
    work: Path
    rates: dict[str, float]

    @property
    def compute(self) -> torch.dtype:
        """What graphs compute in: ONNX Runtime's CPU kernels for 4-bit weights take float32."""
        return torch.float16 if self.device == "cuda" else torch.float32


@dataclass(frozen=True)
class Step:
    """One run of a graph.

    outputs: name -> shape.
    caches: past -> (present, content).
    sizes: of the graph's symbols.
    """

    graph: str
    inputs: dict[str, np.ndarray]
    outputs: dict[str, tuple[int, ...]]
    caches: dict[str, tuple[str, np.ndarray]]
    sizes: dict[str, int]


def rates(context: Context) -> dict[str, Any]:
    """What the machine is, and its rates: memory, the way from the host to it, matrix products."""
    device = context.device
    found: dict[str, Any] = {"machine": machine(device), "rates": {}}
    found["rates"] |= copy_rates(device, (8 if context.tiny else 2048) << 20)
    size = 32 if context.tiny else 8192
    for name in ("float32", "float16", "bfloat16"):
        a = torch.randn(size, size, device=device).to(getattr(torch, name))
        found["rates"][f"{name}_flops_per_s"] = 2 * size**3 / timed(lambda a=a: a @ a, device)
    try:
        found["rates"]["float8e4m3fn_flops_per_s"] = 2 * size**3 / timed(fp8_product(size, device), device)
    except RuntimeError as error:  # a GPU before Ada
        found["float8e4m3fn"] = str(error)[:300]
    return found


def copy_rates(device: Device, size_bytes: int) -> dict[str, float]:
    """Bytes per second: within the device's memory (read and written), from the host's page-locked memory and to it."""
    source = torch.randint(0, 255, (size_bytes,), dtype=torch.uint8, device=device)
    target, host = torch.empty_like(source), torch.randint(0, 255, (size_bytes,), dtype=torch.uint8)
    host = host.pin_memory() if device == "cuda" else host
    return {
        "memory_bytes_per_s": 2 * size_bytes / timed(lambda: target.copy_(source), device),
        "host_to_device_bytes_per_s": size_bytes / timed(lambda: target.copy_(host), device),
        "device_to_host_bytes_per_s": size_bytes / timed(lambda: host.copy_(source), device),
    }


def fp8_product(size: int, device: str) -> Callable[[], Any]:
    """A product of FP8 matrices with one scale each; the second is laid out by columns, as the kernel has it."""
    a = torch.randn(size, size, device=device).to(torch.float8_e4m3fn)
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, a.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def machine(device: str) -> dict[str, Any]:
    """Names and versions."""
    found: dict[str, Any] = {"python": platform.python_version(), "packages": {}}
    for name in PACKAGES:
        try:
            found["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found["packages"][name] = None
    nvcc = shutil.which("nvcc")
    found["nvcc"] = (
        subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout.split("\n")[-2:] if nvcc else None
    )
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "compute_capability": 10 * properties.major + properties.minor,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
        }
    return found


def provider(context: Context) -> dict[str, Any]:
    """Whether ONNX Runtime computes on the device: a product, compared with numpy's."""
    return sessions.probe(context.device)


def calibration(context: Context) -> dict[str, Any]:
    """`calibrate --device` at true width: seconds of each block, and what reading its weights takes at the least."""
    found: dict[str, Any] = {}
    checkpoint = context.work / "slice"
    if context.tiny:
        synthesize(checkpoint, preset="nano", vision_layers=1, language_layers=1)
    else:
        synthesize(checkpoint, preset="r1v3-38b", vision_layers=2, language_layers=2, weights="sparse")
    tensors = Checkpoint.open(checkpoint).tensors
    for recipe in ("fp8",) if context.tiny else ("fp8", "int4-awq", "int4-gptq"):
        events = Events("r1v_export.quantization.calibration")
        samples = 1 if context.tiny else 8
        precision = "fp8" if recipe == "fp8" else "int4"
        config = BuildConfig(
            model=str(checkpoint),
            precision=precision,
            recipe=recipe,
            device=context.device,
            calibration=CalibrationConfig(samples=samples),
        )
        started = time.perf_counter()
        with events:
            calibrate_alone(config, context.work / recipe, Progress(quiet=True))
        seconds = time.perf_counter() - started
        blocks: dict[str, dict[str, Any]] = {}
        for record in events.records:
            block, taken = getattr(record, "block", None), getattr(record, "seconds", None)
            if block is not None and taken is not None:
                kind = "forward_s" if hasattr(record, "samples") else "quantize_s"
                blocks.setdefault(block, {})[kind] = taken
        for block, row in blocks.items():
            size = sum(info.nbytes for name, info in tensors.items() if name.startswith(f"{block}."))
            row["weight_bytes"] = size
            row |= {
                f"{name.removesuffix('_bytes_per_s')}_s": size / context.rates[name]
                for name in ("host_to_device_bytes_per_s", "memory_bytes_per_s")
                if name in context.rates
            }
        found[recipe] = {"seconds": seconds, "samples": samples, "blocks": blocks}
        shutil.rmtree(context.work / recipe)
    return found


class Events(logging.Handler):
    """Log records of a package while it works."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.INFO)
        self.logger, self.records = logging.getLogger(name), list[logging.LogRecord]()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def __enter__(self) -> Events:
        self.before = self.logger.level
        self.logger.setLevel(logging.INFO)
        self.logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.logger.removeHandler(self)
        self.logger.setLevel(self.before)


def nano(context: Context) -> dict[str, Any]:
    """The whole of `build`, `check` and `bench` on r1v-nano, in every precision that the device takes."""
    precisions = ("fp32",) if context.tiny else ("fp32", "fp16", "fp8", "int8", "int4")
    found: dict[str, Any] = {}
    for precision in precisions:
        out, on = context.work / f"nano-{precision}", ["--device", context.device]
        parity = ["--no-parity"] if context.tiny else []
        done = found[precision] = {"build": cli("build", "r1v-nano", "--precision", precision, *on, *parity, "-o", out)}
        if "error" not in done["build"]:
            done["check"] = checks_of(cli("check", out, *on, "--questions", "1" if context.tiny else "32"))
            done["bench"] = cli("bench", out, *on, "--tokens", "2" if context.tiny else "64", "--runs", "1")
    return found


def cli(*arguments: str | Path) -> dict[str, Any]:
    """What a command prints as JSON, and its exit code; the end of its messages where it fails."""
    printed, messages = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(messages):
        exit_code = main.run([*map(str, arguments), "--format", "json"])
    if exit_code:
        return {"exit_code": exit_code, "error": f"{printed.getvalue()}{messages.getvalue()}"[-3000:]}
    return {"exit_code": 0, "printed": json.loads(printed.getvalue())}


def checks_of(done: dict[str, Any]) -> dict[str, Any]:
    """Of a parity report the checks of every boundary."""
    if "printed" not in done:
        return done
    boundaries = {row["name"]: row["checks"] for row in done["printed"]["boundaries"]}
    kept = ("metric", "value", "limit", "passed")
    rows = {name: [{key: check[key] for key in kept} for check in checks] for name, checks in boundaries.items()}
    return {"exit_code": done["exit_code"], "boundaries": rows}


def vision(context: Context) -> dict[str, Any]:
    """A slice of the vision tower in float16, 13 tiles at once (and one): time, place of every node, the roofline."""
    layers, all_tiles = (1, (1, 2)) if context.tiny else (6, (1, 13))
    spec = slice_spec(context, layers)
    graphs = prepare(context, spec, contract.VISION, "fp16")
    side = spec.tiling.tile_size
    found: dict[str, Any] = {"layers": layers}
    for tiles in all_tiles:
        inputs = {contract.PIXEL_VALUES: torch.randn(tiles, 3, side, side, dtype=context.compute).numpy()}
        for cuda_graph in (False, True) if context.device == "cuda" else (False,):
            name = f"{tiles} tiles" + (", CUDA graph" if cuda_graph else "")
            outputs = {contract.VISION_FEATURES: (tiles, spec.tokens_per_tile, spec.projector.in_features)}
            step = Step(contract.VISION, inputs, outputs, {}, {"tiles": tiles})
            found[name] = measured(context, graphs, step, cuda_graph)
    return found


def decode(context: Context) -> dict[str, Any]:
    """A slice of the decoder, one new token for 1 and for 16 sequences: float16 and INT4, with and without a CUDA
    graph."""
    layers, capacity, length = (1, 64, 40) if context.tiny else (4, 4096, 4000)
    spec = slice_spec(context, layers)
    found: dict[str, Any] = {"layers": layers, "capacity": capacity, "length": length}
    for precision in ("fp16", "int4"):
        graphs = prepare(context, spec, contract.DECODER, precision)
        for batch in (1, 2) if context.tiny else (1, 16):
            step = decoder_step(spec, context.compute, batch, capacity, length)
            for cuda_graph in (False, True) if context.device == "cuda" else (False,):
                name = f"{precision}, batch {batch}" + (", CUDA graph" if cuda_graph else "")
                found[name] = measured(context, graphs, step, cuda_graph)
        shutil.rmtree(graphs.parent)
    return found


def decoder_step(spec: ModelSpec, compute: torch.dtype, batch: int, capacity: int, length: int) -> Step:
    """One new token for each sequence, `length` tokens with it."""
    language = spec.language
    whole = torch.full((batch,), length, dtype=torch.int64)
    inputs = {
        contract.INPUTS_EMBEDS: torch.randn(batch, 1, language.hidden_size, dtype=compute),
        contract.POSITION_IDS: whole[:, None] - 1,
        contract.CACHE_WRITE_INDEX: whole - 1,
        contract.CACHE_LENGTH: whole,
        contract.LOGITS_INDEX: torch.zeros(batch, 1, dtype=torch.int64),
    }
    shape = (batch, language.num_kv_heads, capacity, language.head_dim)
    caches = {
        past: (present, 0.1 * torch.randn(shape, dtype=compute).numpy())
        for past, present in contract.cache_pairs(language.num_layers)
    }
    arrays = {name: value.numpy() for name, value in inputs.items()}
    outputs = {contract.LOGITS: (batch, 1, language.vocab_size)}
    sizes = {"batch": batch, "seq": 1, "logit_positions": 1, "capacity": capacity, "length": length}
    return Step(contract.DECODER, arrays, outputs, caches, sizes)


def slice_spec(context: Context, layers: int) -> ModelSpec:
    """The 38B with few layers; nano with one in its place where the machine is small."""
    if not context.tiny:
        return spec_38b(layers, VOCABULARY)
    with tempfile.TemporaryDirectory() as folder:
        small = synthesize(Path(folder), preset="nano", vision_layers=layers, language_layers=layers, weights="empty")
        return Checkpoint.open(small).spec


def prepare(context: Context, spec: ModelSpec, graph: str, precision: str) -> Path:
    """A bundle's folders `graphs` and `engine` with one graph; returns the latter."""
    folder = Path(tempfile.mkdtemp(dir=context.work))
    (folder / "graphs").mkdir()
    (folder / "engine").mkdir()
    export_hollow(graph, spec, precision, folder / "graphs", context.compute)
    sessions.lower_graph(folder / "graphs", graph, context.device, folder / "engine")
    return folder / "engine"


def measured(context: Context, engine: Path, step: Step, cuda_graph: bool) -> dict[str, Any]:
    """Seconds of a run, where its nodes are, and what part of its rooflines that is; or why it does not run."""
    try:
        model, root = engine / f"{step.graph}.onnx", engine.parent
        opened = sessions.Bound(model, root, context.device, step.inputs, step.outputs, step.caches, cuda_graph)
        seconds = timed(opened.run, context.device, repeats=3 if context.tiny else 30)
    except Exception as error:  # one of ONNX Runtime's own; the next variant may run
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    costs = count(ir.load(engine.parent / "graphs" / f"{step.graph}.onnx"), step.sizes)
    result = {"seconds": seconds, "nodes": opened.nodes, "on_cpu": opened.on_cpu, "finite": opened.finite()}
    for device in (measured_device(context.rates), data_sheet_device(context.device)):
        if device is not None:
            least = total(layer_times(costs, device)).seconds
            result[f"roofline, {device.name}"] = {"seconds": least, "fraction": least / seconds}
    return result


def measured_device(found: dict[str, float]) -> DeviceSpec | None:
    """The machine by the rates of the step `rates`."""
    tflops = {
        name.removesuffix("_flops_per_s"): rate / 1e12 for name, rate in found.items() if name.endswith("_flops_per_s")
    }
    if "memory_bytes_per_s" not in found or "float16" not in tflops:
        return None
    return DeviceSpec("measured rates", 0, tflops, 0, found["memory_bytes_per_s"] / 1e9, "the step rates")


def data_sheet_device(device: str) -> DeviceSpec | None:
    """The GPU by its maker's rates, where they are known."""
    return named_by_driver(torch.cuda.get_device_name(0)) if device == "cuda" else None


def tensorrt_rtx(context: Context) -> dict[str, Any]:
    """Whether TensorRT-RTX builds for compute capability 9.0, ahead of time and on such a GPU, and runs there."""
    from r1v_export.targets.tensorrt.build.parts import PARTS, compiled
    from r1v_export.targets.tensorrt.config import TensorRTConfig
    from r1v_export.targets.tensorrt.library import TENSORRT_RTX, load

    found: dict[str, Any] = {}
    library = load(TENSORRT_RTX)
    found["version"], found["compute_capabilities"] = library.version, list(library.compute_capabilities)
    spec = slice_spec(context, 1)
    graphs = context.work / "graphs"
    graphs.mkdir()
    export_hollow(contract.PROJECTOR, spec, "fp16", graphs)
    part = next(part for part in PARTS if part.name == contract.PROJECTOR)
    options = TensorRTConfig()
    for sm in (89, 90):
        out = context.work / f"sm{sm}"
        out.mkdir()
        try:
            positions = spec.language.max_position_embeddings
            info = compiled(library, part, graphs, options, positions, (sm,), out, ignore_progress)
            found[f"projector for {sm}"] = {"plan_bytes": info.plan_bytes}
        except Exception as error:  # what the library says of it is the result
            found[f"projector for {sm}"] = {"error": f"{type(error).__name__}: {error}"[:2000]}
    if context.device == "cuda":
        out = context.work / "nano-rtx"
        on = ["--target", TENSORRT_RTX, "--device", "cuda"]
        found["nano on this GPU"] = cli("build", "r1v-nano", "--precision", "fp16", *on, "--sm", "current", "-o", out)
    return found


def timed(run: Callable[[], Any], device: str, repeats: int = 10) -> float:
    """Median seconds of a run, after two that do not count."""
    readings = []
    for turn in range(repeats + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn >= 2:
            readings.append(time.perf_counter() - started)
    return statistics.median(readings)


STEPS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "rates": rates,
    "provider": provider,
    "nano": nano,
    "decode": decode,
    "vision": vision,
    "calibration": calibration,
    "tensorrt-rtx": tensorrt_rtx,
}
"""In the order of what is wanted most."""
