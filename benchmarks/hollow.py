"""Graphs of a model's true width whose weights mean nothing: what building them takes, without a checkpoint.

Nothing is held in memory: every weight is one random row, repeated, and written a few rows at a time. Rows differ
between weights, because TensorRT keeps equal weights once.
"""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from r1v_export import contract
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.checkpoint.synth import synthesize
from r1v_export.exporters.bind import save_with_weights
from r1v_export.exporters.export import SOURCES, trace_graph
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.apply.onnx import quantizer
from r1v_export.quantization.groups import linear_shapes
from r1v_export.quantization.number_formats import QWEIGHT_DTYPES
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.quantization.recipe import Scheme

SCHEMES = {
    "fp8": Scheme.model_validate(
        {
            "weights": {"type": "fp8", "granularity": "channel", "algorithm": "rtn"},
            "inputs": {"type": "fp8", "mode": "static"},
        }
    ),
    "int4": Scheme.model_validate(
        {"weights": {"type": "int4", "granularity": "group", "group_size": 128, "algorithm": "rtn"}}
    ),
}
"""What every linear of a graph becomes; a precision that is not here stays as it is traced."""


def spec_38b(layers: int, vocabulary: int | None = None) -> ModelSpec:
    """Skywork-R1V3-38B with few layers, and where given a smaller vocabulary: the layers are what is measured."""
    with tempfile.TemporaryDirectory() as folder:
        sparse = synthesize(
            Path(folder), preset="r1v3-38b", vision_layers=layers, language_layers=layers, weights="empty"
        )
        spec = Checkpoint.open(str(sparse)).spec
    if vocabulary is None:
        return spec
    return spec.model_copy(update={"language": spec.language.model_copy(update={"vocab_size": vocabulary})})


def export_hollow(
    name: str, spec: ModelSpec, precision: str, folder: Path, compute: torch.dtype = torch.float16
) -> Path:
    """Write one of the contract's graphs, its linears quantized as `precision` says."""
    model: ir.Model = trace_graph(name, spec, compute)
    derived = dict(SOURCES[name](spec).derived)
    if precision in SCHEMES:
        derived |= quantizer(spec, _schemes(name, spec, precision), _linear(spec, precision), {})(model)
    shapes = expected_tensors(spec)

    def read(tensor: str) -> Tensor:
        return 0.02 * _row(tensor, shapes[tensor][-1]).expand(shapes[tensor])

    path = folder / f"{name}.onnx"
    save_with_weights(model, derived, read, path)
    return path


def _row(name: str, length: int) -> Tensor:
    """Random numbers that are a tensor's own."""
    return torch.randn(length, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def _schemes(name: str, spec: ModelSpec, precision: str) -> dict[str, Scheme]:
    prefix = {contract.VISION: "vision_model.", contract.PROJECTOR: "mlp1.", contract.DECODER: "language_model.model."}
    return {linear: SCHEMES[precision] for linear in linear_shapes(spec) if linear.startswith(prefix[name])}


def _linear(spec: ModelSpec, precision: str):
    shapes = linear_shapes(spec)
    weights = SCHEMES[precision].weights

    def linear(name: str) -> QuantizedLinear:
        rows, columns = shapes[name]
        groups = (rows,) if weights.group_size is None else (rows, columns // weights.group_size)
        return QuantizedLinear(
            qweight=(3 * _row(name, columns))
            .clamp(-7, 7)
            .round()
            .to(QWEIGHT_DTYPES[weights.type])
            .expand(rows, columns),
            weight_type=weights.type,
            scale=torch.tensor(0.01).expand(groups),
            group_size=weights.group_size,
            input_type=SCHEMES[precision].inputs and SCHEMES[precision].inputs.type,
            input_scale=torch.tensor(0.05),
        )

    return linear
