"""From a bundle's standard graphs to graphs lowered for ONNX Runtime, on the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from r1v_export import contract
from r1v_export.checkpoint.spec import ModelSpec
from r1v_export.config import BuildConfig, Compute, Device
from r1v_export.errors import BundleError, CapabilityError, GraphError
from r1v_export.targets.onnxruntime.lower import lower
from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
from r1v_export.targets.onnxruntime.runtime.session import INT4_INPUTS, check_device
from r1v_export.targets.registry import Advance, BuildInputs, NumericsSpec
from r1v_export.targets.shared_weights import point_weights_to

if TYPE_CHECKING:
    from r1v_export.quantization.recipe import Scheme

COMPUTE_TYPES: dict[Compute, ir.DataType] = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
"""What ONNX Runtime's kernels for these graphs take; there are none for bfloat16 on the CPU."""


class OnnxRuntimeTarget:
    """Writes `<graph>.onnx` for each of the contract's graphs.

    Weights are not copied: the lowered graphs refer to those of the standard ones, by paths relative to the bundle
    (`graphs/decoder.data`). ONNX Runtime follows no path out of a model's folder, so an engine is opened with the
    bundle as the root of its weights, see `session.open_session`.
    """

    name = "onnxruntime"
    graphs = contract.GRAPHS

    def check(self, config: BuildConfig) -> None:
        check_device(config.device)
        if config.compute not in COMPUTE_TYPES:
            raise _no_kernels(config.compute)

    def check_model(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
        """Any model will do."""

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        """Weights are the graphs' own."""
        return 0

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        return NumericsSpec(config.compute, rounds_inputs=config.onnxruntime.int4_inputs == "int8")

    def build(self, inputs: BuildInputs, out: Path, advance: Advance) -> None:
        graphs, device = inputs.graphs, inputs.config.device
        check_device(device)
        for name in self.graphs:
            model = ir.load(graphs / f"{name}.onnx")
            compute = model.graph.outputs[0].dtype
            if compute not in COMPUTE_TYPES.values():
                raise _no_kernels(compute.name.lower() if compute else None, where=name)
            try:
                lower(model, device)
            except ir.passes.PassError as error:
                raise GraphError(
                    "A graph cannot be lowered for ONNX Runtime.",
                    where=name,
                    found=error.__cause__ or error,
                    fix="export the graph again with this version",
                ) from error
            point_weights_to(model, graphs.name)
            model.metadata_props[INT4_INPUTS] = inputs.config.onnxruntime.int4_inputs
            ir.save(model, out / f"{name}.onnx")

    def missing(self, device: Device) -> str | None:
        try:
            check_device(device)
        except CapabilityError as error:
            return error.what
        return None

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> OnnxRuntimeEngine:
        check_device(device)
        missing = [f"{name}.onnx" for name in self.graphs if not (engine / f"{name}.onnx").is_file()]
        if missing:
            raise BundleError(
                "An ONNX Runtime engine is not whole.",
                where=engine,
                expected=", ".join(f"{name}.onnx" for name in self.graphs),
                found=f"no {', no '.join(missing)}",
                fix="build the bundle again",
            )
        bundle = engine.resolve().parents[1]
        return OnnxRuntimeEngine(engine, bundle, spec.sizes, device)


def _no_kernels(compute: str | None, where: str | None = None) -> CapabilityError:
    return CapabilityError(
        "ONNX Runtime has no kernels for what this graph computes in.",
        where=where,
        expected=" or ".join(COMPUTE_TYPES),
        found=compute,
        fix="build with --precision fp32; bfloat16 weights keep their values in it",
    )
