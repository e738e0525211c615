"""The exporters, by graph: the table that says where each of the contract's graphs comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch

from r1v_export import contract
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.exporters import decoder, embed, projector, vision
from r1v_export.exporters.bind import DTYPES, save_with_weights
from r1v_export.exporters.check import check_graph
from r1v_export.exporters.graph import GraphSource, Rewrite
from r1v_export.exporters.trace import trace
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback, ignore_progress

SOURCES: dict[str, Callable[[ModelSpec], GraphSource]] = {
    contract.VISION: vision.source,
    contract.PROJECTOR: projector.source,
    contract.EMBED: embed.source,
    contract.DECODER: decoder.source,
}


def trace_graph(name: str, spec: ModelSpec, compute: torch.dtype) -> ir.Model:
    """One graph of the contract, checked, without weights: needs no checkpoint, only its spec."""
    graph_contract = contract.graph_contracts(spec.sizes)[name]
    model = trace(SOURCES[name](spec), graph_contract, compute)
    check_graph(model, graph_contract, DTYPES[compute])
    return model


def export_graph(
    name: str,
    checkpoint: Checkpoint,
    folder: Path,
    compute: torch.dtype,
    on_progress: ProgressCallback = ignore_progress,
    rewrite: Rewrite | None = None,
) -> Path:
    """Write `folder/<name>.onnx` and `<name>.data`; returns the former.

    Peak memory is a few of the largest tensors. `rewrite` changes the traced graph before its weights are bound:
    quantization does.
    """
    model = trace_graph(name, checkpoint.spec, compute)
    derived = dict(SOURCES[name](checkpoint.spec).derived)
    if rewrite is not None:
        derived |= rewrite(model)
        check_graph(model, contract.graph_contracts(checkpoint.spec.sizes)[name], DTYPES[compute])
    path = folder / f"{name}.onnx"
    save_with_weights(model, derived, checkpoint.read, path, on_progress)
    return path
