"""What building with TensorRT-RTX takes, on a machine without a GPU.

Two tables. `depth`: build time, peak memory and plan size of vision (InternViT-6B width) and decoder (Qwen2-32B width)
at 2, 4 and 8 layers, and what a layer costs; weights are all alike, the vocabulary is small, vision has one profile.
`matrix`: every graph of r1v-nano, in every precision, for every compute capability: does it parse and build, and how
large is the plan. Rows are written as they are done; run again, what is there is not measured again.

    python benchmarks/tensorrt_build.py depth [--layers 2 --layers 4 ...]
    python benchmarks/tensorrt_build.py matrix
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import psutil
from build_memory import peak_of
from hollow import export_hollow, spec_38b
from measure import RESULTS, machine, write_results

from r1v_export import contract
from r1v_export.build_file import config_yaml
from r1v_export.config import BuildConfig
from r1v_export.errors import R1VError
from r1v_export.progress import ignore_progress
from r1v_export.targets.tensorrt.build.parts import PARTS, compiled
from r1v_export.targets.tensorrt.config import TensorRTConfig
from r1v_export.targets.tensorrt.library import TENSORRT_RTX, load

PACKAGES = ("torch", "onnx", "onnx-ir", "tensorrt-rtx-cu13")
DEPTH_PRECISIONS = ("int4", "fp8", "fp16")
"""Smallest first: what may not fit into memory comes last."""
LAYERS_38B = {contract.VISION: 45, contract.DECODER: 64}
DEPTH_SIZES = {"sm": [89], "tile_profiles": [[1, 13]], "capacity": 4096, "max_prefill": 2048, "max_batch": 1}
VOCABULARY = 1024
MEMORY_OVER_WEIGHTS = 2.8
"""What a build in fp16 peaks at, seen at 2 and 4 layers; a row that would not fit is omitted and reported as such."""


@click.group()
def cli() -> None: ...


@cli.command()
@click.option("--layers", "all_layers", multiple=True, type=int, default=(2, 4, 8), show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-tensorrt-rtx"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), help="A results file to go on with.")
def depth(all_layers: tuple[int, ...], work: Path, results: Path | None) -> None:
    """Build time and memory against depth."""
    rows = Rows("tensorrt-rtx-depth", results)
    keys = itertools.product(sorted(all_layers), (contract.VISION, contract.DECODER), DEPTH_PRECISIONS)
    for layers, graph, precision in keys:
        key = {"graph": graph, "precision": precision, "layers": layers}
        if not rows.has(key):
            rows.add({**key, **_measure(graph, precision, layers, work)})
    print(rows.finish({"slopes": slopes(rows.rows)}))


def _measure(graph: str, precision: str, layers: int, work: Path) -> dict[str, Any]:
    """Export hollow graphs, then build them in a process of its own."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "graphs").mkdir(parents=True)
    try:
        spec = spec_38b(layers, VOCABULARY)
        for name in (contract.VISION, contract.PROJECTOR) if graph == contract.VISION else (contract.DECODER,):
            export_hollow(name, spec, precision, work / "graphs")
        weight_bytes = sum(path.stat().st_size for path in (work / "graphs").glob("*.data"))
        free = psutil.virtual_memory().available
        if weight_bytes * MEMORY_OVER_WEIGHTS > free:
            return {"omitted": f"{weight_bytes / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB of free memory"}
        (work / "positions").write_text(str(spec.language.max_position_embeddings))
        started = time.monotonic()
        peak_bytes = peak_of([sys.executable, __file__, "one", graph, str(work)])
        seconds = time.monotonic() - started
        info = json.loads((work / f"{graph}.json").read_text())
        return {
            "seconds": round(seconds, 1),
            "build_seconds": float((work / "seconds").read_text()),
            "peak_rss_gb": round(peak_bytes / 1e9, 2),
            "weights_gb": round(weight_bytes / 1e9, 3),
            "plan_gb": round(info["plan_bytes"] / 1e9, 3),
            "fused_attention": info["fused_attention"],
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)


@cli.command(hidden=True)
@click.argument("graph")
@click.argument("work", type=click.Path(path_type=Path))
def one(graph: str, work: Path) -> None:
    """Build one plan; the process whose memory is measured."""
    options = TensorRTConfig.model_validate(DEPTH_SIZES)
    part = next(part for part in PARTS if part.name == graph)
    started = time.monotonic()
    positions = int((work / "positions").read_text())
    compiled(load(TENSORRT_RTX), part, work / "graphs", options, positions, (89,), work, ignore_progress)
    (work / "seconds").write_text(f"{time.monotonic() - started:.2f}")


def slopes(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per graph and precision, what a layer adds between the shallowest and the deepest row, and what that makes at the
    38B's depth: extrapolated, not measured."""
    result = []
    measured = [row for row in rows if "seconds" in row]
    for graph, precision in dict.fromkeys((row["graph"], row["precision"]) for row in measured):
        mine = sorted((r for r in measured if (r["graph"], r["precision"]) == (graph, precision)), key=_layers)
        if len(mine) < 2:
            continue
        first, last = mine[0], mine[-1]
        per_layer = {
            name: (last[name] - first[name]) / (last["layers"] - first["layers"])
            for name in ("build_seconds", "peak_rss_gb", "plan_gb")
        }
        more = LAYERS_38B[graph] - last["layers"]
        result.append(
            {
                "graph": graph,
                "precision": precision,
                "per_layer": {name: round(value, 3) for name, value in per_layer.items()},
                "extrapolated_38b": {name: round(last[name] + more * value, 1) for name, value in per_layer.items()},
            }
        )
    return result


def _layers(row: dict[str, Any]) -> int:
    return int(row["layers"])


@cli.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-tensorrt-rtx"), show_default=True)
@click.option("--samples", default=8, show_default=True, help="Calibration samples; the sizes do not depend on them.")
@click.option("--results", type=click.Path(path_type=Path), help="A results file to go on with.")
def matrix(work: Path, samples: int, results: Path | None) -> None:
    """Every graph, precision and compute capability of r1v-nano."""
    rows = Rows("tensorrt-rtx-matrix", results)
    library = load(TENSORRT_RTX)
    for precision in ("fp32", "fp16", "bf16", "fp8", "int8", "int4"):
        config = BuildConfig.model_validate(
            {
                "precision": precision,
                "targets": {TENSORRT_RTX: {"sm": [120], "tile_profiles": [[1, 13]]}},
                "calibration": {"samples": samples},
            }
        )
        for sm in library.compute_capabilities:
            for part in PARTS:
                key = {"precision": precision, "sm": sm, "plan": part.name}
                if not rows.has(key):
                    graphs = _nano_graphs(config, work / precision, samples)
                    rows.add({**key, **_build(library, part, graphs, config, sm, work)})
    print(rows.finish({}))


def _nano_graphs(config: BuildConfig, folder: Path, samples: int) -> Path:
    """The graphs of a build of r1v-nano, made once."""
    if not (folder / "graphs" / f"{contract.DECODER}.onnx").exists():
        options = folder.with_suffix(".yaml")
        options.parent.mkdir(parents=True, exist_ok=True)
        options.write_text(config_yaml(config))
        command = [sys.executable, "-m", "r1v_export.cli.main", "build", "--config", str(options), "-o", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "graphs"


def _build(library: Any, part: Any, graphs: Path, config: BuildConfig, sm: int, work: Path) -> dict[str, Any]:
    out = work / "plan"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    started = time.monotonic()
    try:
        options = config.options(TENSORRT_RTX, TensorRTConfig)
        info = compiled(library, part, graphs, options, 4096, (sm,), out, ignore_progress)
    except R1VError as error:
        return {"builds": False, "why": error.what}
    return {
        "builds": True,
        "seconds": round(time.monotonic() - started, 1),
        "plan_bytes": info.plan_bytes,
        "plan_over_weights": round(info.plan_bytes / info.weight_bytes, 2),
        "fused_attention": info.fused_attention,
    }


class Rows:
    """A table that is on disk after every row."""

    def __init__(self, what: str, path: Path | None) -> None:
        self.what, self.conditions = what, machine(PACKAGES)
        before = json.loads(path.read_text())["rows"] if path and path.exists() else []
        self.rows: list[dict[str, Any]] = [row for row in before if "omitted" not in row]

    def has(self, key: dict[str, Any]) -> bool:
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print(f"  {row}", file=sys.stderr, flush=True)
        self.finish({})

    def finish(self, more: dict[str, Any]) -> Path:
        return write_results(self.what, {"machine": self.conditions, "rows": self.rows, **more}, RESULTS)


if __name__ == "__main__":
    cli()
