"""The engine's files: the standard graphs, lowered, on the same weights but for what is rounded to 8 bits."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import onnx_ir as ir

from r1v_export import contract
from r1v_export.bundle import ENGINES
from r1v_export.config import Compute, Device
from r1v_export.errors import CapabilityError, GraphError
from r1v_export.log_event import log_event
from r1v_export.targets.images import IMAGES
from r1v_export.targets.int4_inputs import Int4Inputs
from r1v_export.targets.onnxruntime.cuda_kernels import require_kernels
from r1v_export.targets.onnxruntime.head_file import HEAD_DATA
from r1v_export.targets.onnxruntime.lower import lower, multiply_integers
from r1v_export.targets.onnxruntime.lower.rounded_products import RoundedProducts
from r1v_export.targets.onnxruntime.session_options import INT4_INPUTS, INTEGER_PRODUCTS, STOPS_AT_LENGTH
from r1v_export.targets.onnxruntime.write.int8_head import round_head, take_rounded_head
from r1v_export.targets.onnxruntime.write.rounded_weights import append_rounded
from r1v_export.targets.shared_weights import point_weights_to

_LOG = logging.getLogger(__name__)

TARGET = "onnxruntime"
"""The folder of the engine, below the bundle's engines."""

_HEAD_LOCATION = f"{ENGINES}/{TARGET}/{HEAD_DATA}"
"""In the bundle."""
IMAGES_DATA = "images.data"
"""Weights in 8 bits of the graphs that encode images."""
_IMAGES_LOCATION = f"{ENGINES}/{TARGET}/{IMAGES}/{TARGET}/{IMAGES_DATA}"
"""In the bundle."""

COMPUTE_TYPES: dict[Compute, ir.DataType] = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
"""What ONNX Runtime's kernels for these graphs take; there are none for bfloat16 on the CPU."""


def write_graphs(graphs: Path, names: Iterable[str], device: Device, int4_inputs: Int4Inputs, out: Path) -> None:
    """Write `<graph>.onnx` for each of the named graphs into `out`, its weights' locations relative to the bundle.

    Args:
        int4_inputs: what 4-bit weights are multiplied with on this device.

    Raises:
        CapabilityError: ONNX Runtime has no kernels for what a graph computes in, or none of CUDA's for a node.
        GraphError: a graph is not as our exporters write it.
    """
    for name in names:
        model = ir.load(graphs / f"{name}.onnx")
        compute = model.graph.outputs[0].dtype
        if compute not in COMPUTE_TYPES.values():
            raise no_kernels(compute.name.lower() if compute else None, where=name)
        _lower(model, device, name)
        if device == "cuda":
            require_kernels(model, name)
        message, compute = "%(graph)s: lowered for %(device)s, computes in %(compute)s", model.graph.outputs[0].dtype
        log_event(_LOG, logging.INFO, message, graph=name, device=device, compute=str(compute))
        point_weights_to(model, graphs.name)
        if name == contract.DECODER and device == "cpu" and int4_inputs == "int8":
            round_head(model, graphs.parent, out, location=_HEAD_LOCATION)
        if device == "cpu" and multiply_integers(model):
            model.metadata_props[INTEGER_PRODUCTS] = "1"
        model.metadata_props[INT4_INPUTS] = int4_inputs
        if name == contract.DECODER and all(node.op_type != "TensorScatter" for node in model.graph):
            model.metadata_props[STOPS_AT_LENGTH] = "1"
        ir.save(model, out / f"{name}.onnx")


def write_int8_images(graphs: Path, out: Path) -> None:
    """Write the graphs that encode images, in 8 bits, and their weights into `out`, which is to become the engine's
    folder `images/onnxruntime`.

    Raises:
        GraphError: a graph is not as our exporters write it.
    """
    with (out / IMAGES_DATA).open("wb") as file:
        for name in contract.IMAGE_GRAPHS:
            model = ir.load(graphs / f"{name}.onnx")
            point_weights_to(model, graphs.name)
            rounding = partial(append_rounded, bundle=graphs.parent, file=file, location=_IMAGES_LOCATION)
            _lower(model, "cpu", name, RoundedProducts(rounding))
            log_event(_LOG, logging.INFO, "%(graph)s: lowered for cpu, multiplies in int8", graph=name)
            ir.save(model, out / f"{name}.onnx")


def _lower(model: ir.Model, device: Device, name: str, *first: ir.passes.InPlacePass) -> None:
    """
    Args:
        first: passes that come before those of every graph.

    Raises:
        GraphError: the graph is not as our exporters write it.
    """
    try:
        lower(model, device, *first)
    except ir.passes.PassError as error:
        raise GraphError(
            "A graph cannot be lowered for ONNX Runtime.",
            where=name,
            found=error.__cause__ or error,
            fix="export the graph again with this version",
        ) from error


def decoder_for_others(graphs: Path, int4_inputs: Int4Inputs) -> ir.Model:
    """The standard decoder for another runtime, with the head in 8 bits that `write_graphs` wrote into the bundle's CPU
    engine, if it wrote one. Locations of weights are relative to `graphs`."""
    model = ir.load(graphs / f"{contract.DECODER}.onnx")
    if int4_inputs == "int8":
        take_rounded_head(model, f"../{_HEAD_LOCATION}")
    return model


def no_kernels(compute: str | None, where: str | None = None) -> CapabilityError:
    """The error for a dtype that ONNX Runtime does not compute in."""
    return CapabilityError(
        "ONNX Runtime has no kernels for what this graph computes in.",
        where=where,
        expected=" or ".join(COMPUTE_TYPES),
        found=compute,
        fix="build with --precision fp32; bfloat16 weights keep their values in it",
    )
