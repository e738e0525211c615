"""What every exported graph must be: the contract's boundary, and standard ONNX that engines accept."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from r1v_export.contract import COMPUTE, OPSET, GraphContract, TensorContract
from r1v_export.errors import GraphError

SEQUENCE_TYPES = {"SequenceConstruct", "SequenceAt", "SplitToSequence", "ConcatFromSequence", "SequenceEmpty"}
"""Operators on sequences: standard, but refused by TensorRT."""


def check_graph(model: ir.Model, contract: GraphContract, compute: ir.DataType) -> None:
    """Check that a graph keeps its contract and uses only standard operators of the project's opset.

    Raises:
        GraphError: it does not.
    """
    _check_boundary("inputs", model.graph.inputs, contract.inputs, contract.name, compute)
    _check_boundary("outputs", model.graph.outputs, contract.outputs, contract.name, compute)
    if dict(model.opset_imports) != {"": OPSET}:
        raise GraphError(
            "A graph imports more than the standard operators.",
            where=contract.name,
            expected=f"default domain at opset {OPSET}",
            found=dict(model.opset_imports),
        )
    for node in model.graph:
        if (
            node.domain
            or node.op_type in SEQUENCE_TYPES
            or not onnx.defs.has(node.op_type, max_inclusive_version=OPSET)
        ):
            raise GraphError(
                "A graph uses an operator that engines do not take.",
                where=f"{contract.name}: node {node.name}",
                expected=f"a tensor operator of the standard domain, opset {OPSET}",
                found=f"{node.domain or 'standard domain'}::{node.op_type}",
                fix="write the reference with plain tensor operations: slice or unbind instead of chunk or split",
            )


def _check_boundary(
    side: str,
    values: Sequence[ir.Value],
    tensors: tuple[TensorContract, ...],
    graph: str,
    compute: ir.DataType,
) -> None:
    def describe(name: str | None, dtype: ir.DataType | None, shape: object) -> str:
        return f"{name}: {dtype.name if dtype else None} {shape}"

    expected = [
        describe(
            tensor.name,
            compute if tensor.dtype == COMPUTE else ir.DataType[tensor.dtype.upper()],
            [str(dim) for dim in tensor.shape],
        )
        for tensor in tensors
    ]
    found = [describe(value.name, value.dtype, [str(dim) for dim in value.shape or ()]) for value in values]
    for index, (want, have) in enumerate(
        zip(expected + [None] * len(found), found + [None] * len(expected), strict=False)
    ):
        if want != have:
            raise GraphError(
                f"A graph's {side} are not the contract's.",
                where=f"{graph}, {side} {index}",
                expected=want,
                found=have,
                fix="r1v_export/contract.py is the definition; export again or correct the graph",
            )
