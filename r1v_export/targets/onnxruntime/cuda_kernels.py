"""Whether ONNX Runtime has a CUDA kernel for every node of a graph.

What has none is computed on the CPU, each time, with copies there and back, and without a word. kernels.json holds the
kernels of the CPU and of CUDA that a real onnxruntime-gpu registers, for opset 21 and later; it is what ONNX Runtime's
docs/OperatorKernels.md is made from, and is written by benchmarks/onnxruntime_cuda.py.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir

from r1v_export.count import Count
from r1v_export.errors import CapabilityError

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

Formal = tuple[str, str]
"""Name of an input or output, and its type parameter or type."""


class Missing(NamedTuple):
    """A node that ONNX Runtime would not compute on the GPU."""

    node: str
    operator: str
    found: str
    """Its types by type parameter."""
    kernels: str
    """The types that there are kernels for; empty if there are none."""


def missing_kernels(model: ir.Model) -> Iterator[Missing]:
    """Each node that has no CUDA kernel of its types.

    What is computed from constants alone needs one for the CPU, where ONNX Runtime computes it once, at load.
    """
    table, dtypes = _table(), dict[ir.Value, str]()
    constants: set[ir.Value] = set()
    for node in model.graph:
        inputs, outputs, version = _signature(node, model.opset_imports)
        types = _types(node, inputs, outputs, dtypes)
        folded = all(value is None or value.is_initializer() or value in constants for value in node.inputs)
        if folded:
            constants.update(node.outputs)
        kernels = table.kernels[_CPU if folded else _CUDA].get(_operator(node), ())
        fitting = [kernel for kernel in kernels if kernel.takes_version(version)]
        if not any(kernel.takes(types) for kernel in fitting):
            yield Missing(node.name or "", _operator(node), _found(fitting, types), _nearest(fitting, types))


def require_kernels(model: ir.Model, where: str) -> None:
    """Refuse a graph of which ONNX Runtime would compute a part on the CPU.

    Args:
        where: the graph, for the error.

    Raises:
        CapabilityError: a node has no CUDA kernel; names the first, and says how many there are.
    """
    missing = list(missing_kernels(model))
    if not missing:
        return
    first = missing[0]
    others = f" (and {Count(len(missing) - 1, 'other node')})" if len(missing) > 1 else ""
    raise CapabilityError(
        "ONNX Runtime has no CUDA kernel for a node of a graph and would compute it on the CPU, at every run.",
        where=f"{where}: {first.node}{others}",
        expected=first.kernels or f"an operator that {_table().source} has on CUDA",
        found=f"{first.operator} of {first.found}",
        fix="build with --precision fp16, with --target tensorrt, or with --device cpu",
    )


class _Kernel(NamedTuple):
    first: int
    last: int | None
    types: Mapping[str, tuple[str, ...]]

    def takes_version(self, version: int) -> bool:
        """As ONNX Runtime's KernelRegistry: a kernel without a last version is for that of its first alone."""
        return version == self.first or (self.last is not None and self.first < version <= self.last)

    def takes(self, types: Mapping[str, Sequence[str]]) -> bool:
        return self.agreement(types) == len(self.types)

    def agreement(self, types: Mapping[str, Sequence[str]]) -> int:
        """How many of its type parameters fit."""
        return sum(all(found in allowed for found in types.get(name, ())) for name, allowed in self.types.items())


class _Table(NamedTuple):
    source: str
    """Package and version."""
    signatures: Mapping[str, tuple[Sequence[Formal], Sequence[Formal]]]
    """Formal inputs and outputs of contrib operators."""
    kernels: Mapping[str, Mapping[str, Sequence[_Kernel]]]
    """By provider and operator."""


@functools.cache
def _table() -> _Table:
    document: dict[str, Any] = json.loads(resources.files(__package__).joinpath("kernels.json").read_text("utf-8"))
    signatures = {
        name: (_formals(inputs), _formals(outputs)) for name, (inputs, outputs) in document["signatures"].items()
    }
    kernels = {
        provider: {name: [_kernel(row) for row in rows] for name, rows in operators.items()}
        for provider, operators in document["kernels"].items()
    }
    return _Table(document["source"].rpartition(" of ")[2], signatures, kernels)


def _formals(pairs: Sequence[Sequence[str]]) -> list[Formal]:
    return [(name, type_name) for name, type_name in pairs]


def _kernel(row: tuple[int, int | None, dict[str, str]]) -> _Kernel:
    first, last, types = row
    return _Kernel(first, last, {name: tuple(allowed.split()) for name, allowed in types.items()})


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _signature(node: ir.Node, opsets: Mapping[str, int]) -> tuple[Sequence[Formal], Sequence[Formal], int]:
    """Formal inputs and outputs of a node's operator, and the version of the operator set that defines it."""
    if node.domain:
        return *_table().signatures.get(_operator(node), ([], [])), 1
    schema = onnx.defs.get_schema(node.op_type, opsets[""])
    inputs, outputs = ([(each.name, each.type_str) for each in formal] for formal in (schema.inputs, schema.outputs))
    return inputs, outputs, schema.since_version


def _types(
    node: ir.Node, inputs: Sequence[Formal], outputs: Sequence[Formal], dtypes: dict[ir.Value, str]
) -> dict[str, list[str]]:
    """Types that are bound to each type parameter and to each name; those of untyped results are found on the way."""
    bound: dict[str, list[str]] = {}
    for formal, value in _pairs(inputs, node.inputs):
        _bind(bound, formal, _dtype(value, dtypes))
    for formal, value in _pairs(outputs, node.outputs):
        dtype = _dtype(value, dtypes) or next(iter(bound.get(formal[1], ())), None)
        if dtype is not None:
            dtypes[value] = dtype
        _bind(bound, formal, dtype)
    return bound


def _pairs(formal: Sequence[Formal], values: Sequence[ir.Value | None]) -> Iterator[tuple[Formal, ir.Value]]:
    """Values that are there with what they are for; the last formal one stands for all that follow."""
    for index, value in enumerate(values):
        if value is not None and formal:
            yield formal[min(index, len(formal) - 1)], value


def _bind(bound: dict[str, list[str]], formal: Formal, dtype: str | None) -> None:
    for key in dict.fromkeys(formal):
        if dtype is not None and dtype not in bound.setdefault(key, []):
            bound[key].append(dtype)


def _dtype(value: ir.Value, dtypes: Mapping[ir.Value, str]) -> str | None:
    return dtypes.get(value) or (None if value.dtype is None else value.dtype.name.lower())


def _found(kernels: Sequence[_Kernel], types: Mapping[str, Sequence[str]]) -> str:
    """A node's types, by the type parameters that kernels name."""
    names = dict.fromkeys(name for kernel in kernels for name in kernel.types) or types
    return _in_words({name: types[name] for name in names if name in types})


def _nearest(kernels: Sequence[_Kernel], types: Mapping[str, Sequence[str]]) -> str:
    """The types of the kernels that agree with a node in most of its types."""
    most = max((kernel.agreement(types) for kernel in kernels), default=0)
    return "; ".join(dict.fromkeys(_in_words(each.types) for each in kernels if each.agreement(types) == most))


def _in_words(types: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{name} {' or '.join(each)}" for name, each in types.items())
