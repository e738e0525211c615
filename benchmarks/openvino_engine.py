"""Speed of our OpenVINO engine against our ONNX Runtime engine and PyTorch, on the same graphs and weights.

The vision tower has InternViT-300M's width (hidden 1024, 16 heads, MLP 4096, 448 px) and 6 of its 24 equal blocks, or
with `--tower 6b` InternViT-6B's (hidden 3200, 25 heads, MLP 12800) and `--layers` of its 45; the decoder has
Qwen2.5-0.5B's and 8 of its 24 layers, with the whole head. Random weights, float32 in and out. PyTorch runs the tower
alone, in float32 and in bfloat16, eager and compiled. What takes products of bfloat16 is measured where the processor
has them.

With the time on the wall stands the CPU time of all threads: where other programs take the cores it is what can be
compared.

    python benchmarks/openvino_engine.py [--layers 6] [--tiles 1 --tiles 4] [--prompt 512] [--no-compile]
    python benchmarks/openvino_engine.py --tower 6b --layers 2 --part vision
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from measure import RESULTS, interleaved, machine, ratio, write_results

from r1v_export import contract
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.presets import INTERNVIT_6B, INTERNVIT_300M
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig
from r1v_export.cpus import has_bfloat16_products, thread_count, use_threads
from r1v_export.exporters.export import export_graph
from r1v_export.reference.model import load
from r1v_export.runner.kv_cache import KVCache
from r1v_export.targets import registry
from r1v_export.targets.images import encoding_target
from r1v_export.targets.interface import BuildInputs

ROUNDING, EXACT, PEER = "openvino bfloat16", "openvino float32", "onnxruntime float32"
INT8, OWN_INT8 = "openvino int8", "onnxruntime int8"
"""Images of INT4 bundles: weights and inputs of the tower's products rounded to 8 bits, the rest in bfloat16 by
OpenVINO, in float32 by ONNX Runtime."""
EAGER, EAGER_16 = "torch eager float32", "torch eager bfloat16"
COMPILED, COMPILED_16 = "torch.compile float32", "torch.compile bfloat16"
ENGINES = {
    ROUNDING: ("openvino", {"matmul": "bfloat16"}),
    EXACT: ("openvino", {"matmul": "float32"}),
    PEER: ("onnxruntime", {}),
    INT8: ("openvino", {}),
    OWN_INT8: ("onnxruntime", {}),
}
IN_BFLOAT16 = {ROUNDING, INT8}
TOWERS = {"300m": INTERNVIT_300M, "6b": INTERNVIT_6B}
WALL, CPU = "per_s", "per_cpu_s"
PARTS = contract.VISION, contract.DECODER


def prepare(work: Path, tower_name: str, vision_layers: int, language_layers: int) -> Checkpoint:
    """A checkpoint of these widths and its graphs, made once."""
    if not (work / "checkpoint" / "config.json").exists():
        shutil.rmtree(work / "checkpoint", ignore_errors=True)
        tower = {f"vision_config.{field}": value for field, value in TOWERS[tower_name].items()}
        depth = {"vision_config.num_hidden_layers": vision_layers, "llm_config.num_hidden_layers": language_layers}
        synthesize(work / "checkpoint", preset="internvl3-1b", overrides=tower | depth, dtype="float32")
    checkpoint = Checkpoint.open(work / "checkpoint")
    (work / "graphs").mkdir(exist_ok=True)
    for name in contract.GRAPHS:
        if not (work / "graphs" / f"{name}.onnx").exists():
            export_graph(name, checkpoint, work / "graphs", torch.float32)
    return checkpoint


def open_engine(work: Path, checkpoint: Checkpoint, which: str, parts: tuple[str, ...]) -> tuple[Any, dict[str, float]]:
    """An engine of the graphs, and how long the measured graphs took to open, in seconds of the wall and CPU."""
    name, options = ENGINES[which]
    bundle = work / which.replace(" ", "-")
    in_8_bits = which in (INT8, OWN_INT8)
    # Where a bundle of ONNX Runtime's has its parts.
    folder = bundle / "engines" / (f"onnxruntime/images/{name}" if in_8_bits else name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    graphs = bundle / "graphs"
    if not graphs.exists():
        graphs.symlink_to(work / "graphs")
    if in_8_bits:
        encoding_target(name).write_images(graphs, folder, ("int8",))
        parts = (contract.VISION,)
    else:
        inputs = BuildInputs(graphs, checkpoint, None, BuildConfig(targets={name: options}))
        registry.get_target(name).build(inputs, folder, lambda _: None)
    started, cpu = time.perf_counter(), time.process_time()
    if in_8_bits:
        engine = encoding_target(name).open_images(folder, bundle, checkpoint.spec, "int8")
    else:
        engine = registry.get_target(name).open(folder, checkpoint.spec, "cpu")
    for graph in parts:
        getattr(engine, f"_{graph}")
    return engine, {"open_s": time.perf_counter() - started, "open_cpu_s": time.process_time() - cpu}


def towers(checkpoint: Checkpoint, threads: int, compile_: bool) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """PyTorch's ways to encode images."""
    torch.set_num_threads(threads)

    def by_torch(run: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> Callable[[np.ndarray], np.ndarray]:
        def vision(pixels: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                features: np.ndarray = run(torch.from_numpy(pixels).to(dtype)).float().numpy()
            return features

        return vision

    dtypes = {torch.float32: (EAGER, COMPILED)}
    if has_bfloat16_products():
        dtypes[torch.bfloat16] = (EAGER_16, COMPILED_16)
    runs = {}
    for dtype, (eager, compiled) in dtypes.items():
        tower = load(checkpoint).vision_model.to(dtype)
        runs[eager] = by_torch(tower, dtype)
        if compile_:
            runs[compiled] = by_torch(torch.compile(tower), dtype)
    return runs


def rates(run: Callable[[], object], count: int) -> dict[str, float]:
    """`count` things done by one call, per second of the wall and of all threads' CPU time."""
    started, cpu = time.perf_counter(), time.process_time()
    run()
    return {WALL: count / (time.perf_counter() - started), CPU: count / (time.process_time() - cpu)}


def summary(measured: dict[str, Any], against: str) -> dict[str, Any]:
    """Ratios to every other's rates: of OpenVINO's in bfloat16, of ONNX Runtime's in 8 bits, and of `against`'s."""
    compared = [name for name in (ROUNDING, OWN_INT8, against) if name in measured]
    pairs = [(ours, peer) for ours in compared for peer in measured if ours != peer]
    return {f"{a} / {b}": {quantity: ratio(measured, a, b, quantity) for quantity in (WALL, CPU)} for a, b in pairs}


def measure_vision(engines: dict[str, Any], checkpoint: Checkpoint, tiles: int, peers: dict, repeats: int) -> dict:
    """Tiles encoded a second by each, and how far each is from PyTorch in float32."""
    size = checkpoint.spec.tiling.tile_size
    pixels = np.random.default_rng(0).standard_normal((tiles, 3, size, size)).astype(np.float32)
    runs = {name: engine.vision for name, engine in engines.items()} | peers
    expected = peers[EAGER](pixels)
    errors = {
        name: float(np.linalg.norm(run(pixels) - expected) / np.linalg.norm(expected)) for name, run in runs.items()
    }
    measured = interleaved({name: lambda r=run: rates(lambda: r(pixels), tiles) for name, run in runs.items()}, repeats)
    return {"relative_errors": errors, "ratios": summary(measured, EXACT), **measured}


def measure_decoder(engines: dict[str, Any], prompt: int, steps: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of a prompt, and of the steps that decode behind it."""
    found: dict[str, Any] = {"prompt": prompt, "steps": steps}
    sizes = next(iter(engines.values())).sizes
    embeds = np.random.default_rng(0).standard_normal((1, prompt + steps, sizes.hidden)).astype(np.float32) * 0.02
    caches: dict[str, KVCache] = {}

    def prefill(name: str) -> None:
        caches[name] = KVCache(engines[name].decoder(1, prompt + steps))
        caches[name].append(embeds[:, :prompt], np.array([prompt]))

    def decode(name: str) -> None:
        for step in range(prompt, prompt + steps):
            caches[name].append(embeds[:, step : step + 1], np.array([1]))
        caches[name].truncate(0, prompt)

    for what, run, count in (("prefill", prefill, prompt), ("decode", decode, steps)):
        turns = {name: lambda n=name, r=run, c=count: rates(lambda: r(n), c) for name in engines}
        measured = interleaved(turns, repeats)
        found[what] = {"ratios": summary(measured, EXACT), **measured}
    return found


@click.command()
@click.option("--tower", default="300m", type=click.Choice([*TOWERS]), show_default=True, help="The ViT's width.")
@click.option("--layers", default=6, show_default=True, help="ViT blocks.")
@click.option("--language-layers", default=8, show_default=True)
@click.option("--tiles", "tile_counts", multiple=True, type=int, default=(1, 4), show_default=True)
@click.option("--prompt", "prompts", multiple=True, type=int, default=(128, 1024), show_default=True)
@click.option("--part", "parts", multiple=True, default=PARTS, type=click.Choice(PARTS), show_default=True)
@click.option("--steps", default=16, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--threads", default=thread_count().count, show_default=True)
@click.option("--compile/--no-compile", "compile_", default=True, help="Compare with torch.compile too.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-benchmark-openvino"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    tower: str,
    layers: int,
    language_layers: int,
    tile_counts: tuple[int, ...],
    prompts: tuple[int, ...],
    parts: tuple[str, ...],
    steps: int,
    repeats: int,
    threads: int,
    compile_: bool,
    work: Path,
    results: Path,
) -> None:
    use_threads(threads)
    report: dict[str, Any] = {"machine": machine(("openvino", "onnxruntime", "torch")), "threads": threads}
    report |= {"tower": tower, "vision_layers": layers, "language_layers": language_layers, "vision": {}, "decoder": []}
    work = work / f"{tower}-{layers}-{language_layers}"
    checkpoint = prepare(work, tower, layers, language_layers)
    measured = [name for name in ENGINES if has_bfloat16_products() or name not in IN_BFLOAT16]
    opened = {name: open_engine(work, checkpoint, name, parts) for name in measured}
    engines = {name: engine for name, (engine, _) in opened.items()}
    report["open"] = {name: seconds for name, (_, seconds) in opened.items()}
    peers = towers(checkpoint, threads, compile_) if contract.VISION in parts else {}
    for tiles in tile_counts if contract.VISION in parts else ():
        report["vision"][tiles] = measure_vision(engines, checkpoint, tiles, peers, repeats)
        click.echo(f"{tiles} tiles: {report['vision'][tiles]['ratios']} {report['vision'][tiles]['relative_errors']}")
    for prompt in prompts if contract.DECODER in parts else ():
        decoding = {name: engine for name, engine in engines.items() if name not in (INT8, OWN_INT8)}
        report["decoder"].append(measure_decoder(decoding, prompt, steps, repeats))
        click.echo(f"prompt {prompt}: {[report['decoder'][-1][what]['ratios'] for what in ('prefill', 'decode')]}")
    report["machine"]["load_average_after"] = machine(())["load_average_before"]
    name = "openvino-engine" if tower == "300m" else f"vision-{tower}"
    click.echo(write_results(name, report | {"repeats": repeats}, results))


if __name__ == "__main__":
    main()
