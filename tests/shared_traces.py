"""Traced graphs, each traced once for all workers of pytest-xdist: a trace takes seconds, reading one milliseconds."""

from __future__ import annotations

import fcntl
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch

from r1v_export.model_spec import ModelSpec

Trace = Callable[[str, ModelSpec, torch.dtype], ir.Model]


def shared(trace: Trace, folder: Path) -> Trace:
    """`trace`, with its graphs in a folder: the first process that needs one makes it, others wait and read it."""

    def read_or_trace(name: str, spec: ModelSpec, compute: torch.dtype) -> ir.Model:
        folder.mkdir(exist_ok=True)
        file = folder / hashlib.sha256(repr((name, spec, compute)).encode()).hexdigest()
        with file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if file.exists():
                model: ir.Model = pickle.loads(file.read_bytes())
                return model
            model = without_meta(trace(name, spec, compute).clone())
            try:
                content = pickle.dumps(model)
            except (RuntimeError, TypeError, pickle.PicklingError):
                # Too many layers for pickle, or an object of PyTorch: each process traces its own.
                return model
            file.with_suffix(".unfinished").write_bytes(content)
            file.with_suffix(".unfinished").rename(file)
            return model

    return read_or_trace


def without_meta(model: ir.Model) -> ir.Model:
    """The same graph without what PyTorch's exporter notes for itself: it cannot be pickled, and nothing reads it."""
    model.meta.clear()
    for graph in (model.graph, *model.functions.values()):
        graph.meta.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.meta.clear()
        for node in graph.all_nodes():
            node.meta.clear()
            for value in (*node.inputs, *node.outputs):
                if value is not None:
                    value.meta.clear()
    return model
