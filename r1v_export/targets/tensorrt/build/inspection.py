"""What an engine is, read from the files next to its plans: no TensorRT and no GPU are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1v_export.count import Count
from r1v_export.errors import BundleError
from r1v_export.files import read_regular_text
from r1v_export.progress import size
from r1v_export.strict import load_json
from r1v_export.targets.interface import EngineDescription
from r1v_export.targets.tensorrt.build.plan import LAYERS, PlanInfo, read_info
from r1v_export.targets.tensorrt.runtime.loading import PLANS

_ATTENTION_KERNEL = "mha"
"""In the name of a fused attention kernel."""


def engine_facts(folder: Path) -> dict[str, Any]:
    """Of each plan: its description, its layers, and a one-line summary.

    Raises:
        BundleError: a file is missing or malformed.
    """
    return {name: _plan_facts(folder, name) for name in PLANS}


def describe_plans(folder: Path) -> dict[str, EngineDescription]:
    """The same of each plan, for `inspect`.

    Raises:
        BundleError: a file is missing or malformed.
    """
    return {name: _description(facts) for name, facts in engine_facts(folder).items()}


def _description(facts: dict[str, Any]) -> EngineDescription:
    rows = [
        ("library", facts["library"]),
        ("GPUs", "compute capability " + ", ".join(map(str, facts["compute_capabilities"]))),
        ("plan", f"{size(facts['plan_bytes'])}, {facts['plan_over_weights']} times its weights"),
        ("profiles", "; ".join(facts["profiles"])),
        ("attention", facts["attention"]),
        ("products", _counts(facts["products"])),
        ("kernels", f"{_counts(facts['kernels'])}; {Count(facts['fused_nodes'], 'node')} fused away"),
    ]
    layers = [(layer["kind"], _nodes(layer["nodes"]) or layer["name"]) for layer in facts["layers"]]
    return EngineDescription(facts, rows, layers)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _nodes(nodes: Sequence[str]) -> str:
    return nodes[0] + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else "") if nodes else ""


def _plan_facts(folder: Path, name: str) -> dict[str, Any]:
    info, layers = read_info(folder, name), _layers(folder / f"{name}{LAYERS}")
    return {
        "library": f"{info.library} {info.version}",
        "compute_capabilities": list(info.compute_capabilities),
        "profiles": [_profile_text(profile) for profile in info.profiles],
        "plan_bytes": info.plan_bytes,
        "weight_bytes": info.weight_bytes,
        "plan_over_weights": round(info.plan_bytes / max(1, info.weight_bytes), 2),
        "attention": _attention(info, layers),
        "kernels": dict(Counter(layer["kind"] for layer in layers)),
        "products": dict(Counter(_product_type(layer) for layer in layers if _is_product(layer))),
        "fused_nodes": sum(len(layer["nodes"]) for layer in layers) - sum(1 for layer in layers if layer["nodes"]),
        "layers": layers,
    }


def _attention(info: PlanInfo, layers: list[dict[str, Any]]) -> str:
    kernels = sum(_ATTENTION_KERNEL in layer["name"] for layer in layers)
    if not any("/Attention" in node for layer in layers for node in layer["nodes"]):
        return "none"
    return (
        str(Count(kernels, "fused kernel"))
        if info.fused_attention
        else "several kernels each: TensorRT has no fused one"
    )


def _is_product(layer: dict[str, Any]) -> bool:
    """A matrix product with a weight, alone (`gemm`) or with its neighbors in one kernel (`runtime_fusion`)."""
    kinds = ("gemm", "runtime_fusion")
    return layer["kind"] in kinds and bool(layer["constants"]) and any("/MatMul" in node for node in layer["nodes"])


def _product_type(layer: dict[str, Any]) -> str:
    """`FP8 x FP8 -> Half`: what a matrix product takes, its weight last, and what it gives."""
    operands = [*layer["inputs"][:1], *layer["constants"][:1]] or ["?"]
    return f"{' x '.join(operands)} -> {'/'.join(dict.fromkeys(layer['outputs'])) or '?'}"


def _profile_text(profile: dict[str, tuple[int, int, int]]) -> str:
    return ", ".join(f"{symbol} {min} to {max}" for symbol, (min, _, max) in profile.items())


def _layers(path: Path) -> list[dict[str, Any]]:
    try:
        layers = load_json(read_regular_text(path), BundleError, "An engine's layers cannot be read", where=path)
        fields = {"name", "kind", "inputs", "constants", "outputs", "nodes"}
        if all(isinstance(layer, dict) and fields <= layer.keys() for layer in layers):
            return list(layers)
        found: object = "other fields"
    except (OSError, ValueError, TypeError) as error:
        found = error
    raise BundleError("An engine's layers cannot be read.", where=path, found=found, fix="build the bundle again")
