"""The engine's files: the standard graphs, lowered, their weights inputs that the runtime fills from the bundle.

OpenVINO reads weights only from below a graph's own folder. So `<graph>.onnx` takes each of them as an input, and
`engine.json` says where in the bundle it lies: weights are not copied.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx_ir as ir

from r1v_export import contract
from r1v_export.config import Compute, ImageProducts
from r1v_export.count import Count
from r1v_export.errors import CapabilityError, GraphError
from r1v_export.exporters.graph_values import dtype_of, input_of
from r1v_export.log_event import log_event
from r1v_export.targets.openvino.config import OpenVinoConfig
from r1v_export.targets.openvino.engine_file import (
    ENGINE_FILE,
    LEAST_GROUP,
    ElementType,
    EngineFile,
    GraphWeights,
    Weight,
)
from r1v_export.targets.openvino.lower import lower

_LOG = logging.getLogger(__name__)

COMPUTE_TYPES: dict[Compute, ir.DataType] = {"float32": ir.DataType.FLOAT}
"""What graphs may compute in; products are rounded by the session, see `config.OpenVinoConfig`."""

_FOUR_BITS = ir.DataType.INT4, ir.DataType.UINT4

_INLINE_BYTES = 1 << 10
"""Smaller tensors go into the graph itself: shapes and scales, which OpenVINO's front end reads as it translates."""

_INPUT_GROUPS = (128, 64, LEAST_GROUP)
"""How many inputs may share a scale. The more, the faster: 128 instead of 32 is a quarter faster at 0.5B."""

_TYPES: Mapping[ir.DataType, ElementType] = {
    ir.DataType.FLOAT: "f32",
    ir.DataType.FLOAT16: "f16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT64: "i64",
    ir.DataType.INT32: "i32",  # the order of inputs whose groups are not next to each other
    ir.DataType.INT8: "i8",
    ir.DataType.UINT8: "u8",
    ir.DataType.INT4: "i4",
    ir.DataType.UINT4: "u4",
    ir.DataType.FLOAT8E4M3FN: "f8e4m3",
}


def write_graphs(
    graphs: Path,
    names: Iterable[str],
    options: OpenVinoConfig,
    out: Path,
    *,
    image_products: tuple[ImageProducts, ...] = ("bfloat16",),
) -> None:
    """Write `<graph>.onnx` for each of the named graphs, and `engine.json`, into `out`.

    Args:
        image_products: as `EngineFile` has them.

    Raises:
        CapabilityError: a graph computes in what it may not, or has weights of a type that OpenVINO lacks.
        GraphError: a graph is not as our exporters write it.
    """
    models = {name: ir.load(graphs / f"{name}.onnx") for name in names}
    _write(models, graphs, EngineFile(options=options, weights={}, image_products=image_products), out)


def write_paged_decoder(model: ir.Model, graphs: Path, options: OpenVinoConfig, out: Path) -> None:
    """Write `decoder.onnx`, whose cache is a pool of blocks, and `engine.json` into `out`.

    Args:
        model: the standard decoder, or one with other weights, changed in place; their locations are relative to
            `graphs`.

    Raises:
        CapabilityError, GraphError: as `write_graphs` does.
    """
    _write({contract.DECODER: model}, graphs, EngineFile(options=options, weights={}, paged=True), out)


def _write(models: Mapping[str, ir.Model], graphs: Path, file: EngineFile, out: Path) -> None:
    """Lower graphs, and write them and the file that tells where their weights are."""
    weights: dict[str, GraphWeights] = {}
    groups: dict[str, int] = {}
    for name, model in models.items():
        compute = model.graph.outputs[0].dtype
        if compute not in COMPUTE_TYPES.values():
            raise no_products(compute.name.lower() if compute else None, where=name)
        try:
            lower(model, paged=file.paged)
        except ir.passes.PassError as error:
            raise GraphError(
                "A graph cannot be lowered for OpenVINO.",
                where=name,
                found=error.__cause__ or error,
                fix="export the graph again with this version",
            ) from error
        if (group := _input_group(model)) is not None:
            groups[name] = group
        weights[name] = _weights_to_inputs(model, graphs, name)
        count = Count(len(weights[name]), "weight")
        log_event(_LOG, logging.INFO, "%(graph)s: lowered, %(weights)s", graph=name, weights=count)
        ir.save(model, out / f"{name}.onnx")
    written = file.model_copy(update={"weights": weights, "input_groups": groups})
    (out / ENGINE_FILE).write_text(f"{written.model_dump_json(indent=1)}\n")


def no_products(compute: str | None, where: str | None = None) -> CapabilityError:
    """The error for a dtype that graphs may not compute in."""
    return CapabilityError(
        "The target openvino has no graphs in this type.",
        where=where,
        expected=" or ".join(COMPUTE_TYPES),
        found=compute,
        fix="build with --precision fp32; products are then in bfloat16 where the CPU has them",
    )


def _input_group(model: ir.Model) -> int | None:
    """How many inputs of a graph's grouped weights share a scale where they are rounded to 8 bits; None without such
    weights. OpenVINO's fast product takes no more of them than weights that share one."""
    sizes = [
        node.attributes.get_int("block_size", 0)
        for node in model.graph
        if node.op_type == "DequantizeLinear" and _is_grouped(node)
    ]
    groups = (group for group in _INPUT_GROUPS if all(size % group == 0 for size in sizes))
    return next(groups, LEAST_GROUP) if sizes else None


def _is_grouped(dequantize: ir.Node) -> bool:
    dtype = dtype_of(input_of(dequantize, 0))
    return dtype in _FOUR_BITS or (dtype is ir.DataType.INT8 and "block_size" in dequantize.attributes)


def _weights_to_inputs(model: ir.Model, graphs: Path, graph: str) -> GraphWeights:
    """Make inputs of a graph's external weights; small ones become part of it."""
    found: GraphWeights = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if tensor.nbytes < _INLINE_BYTES:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=name)
            continue
        if tensor.dtype not in _TYPES:
            expected = " or ".join(sorted(_TYPES.values()))
            where = f"{graph}: {name}"
            raise CapabilityError("OpenVINO has no such type.", where=where, expected=expected, found=tensor.dtype.name)
        found[name] = Weight(
            file=posixpath.normpath(f"{graphs.name}/{tensor.location}"),
            offset=tensor.offset or 0,
            size_bytes=tensor.nbytes,
            type=_TYPES[tensor.dtype],
            shape=tuple(map(int, tensor.shape.numpy())),
        )
        value.shape, value.type = tensor.shape, ir.TensorType(tensor.dtype)
        del model.graph.initializers[name]
        value.const_value = None
        model.graph.inputs.append(value)
    return found
