"""Every tensor of a unified checkpoint, in model order, each made when it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.checkpoint.quantized.int4_packing import pack_pairs
from r1v_export.checkpoint.quantized.unified import (
    ALGORITHMS,
    INPUT_SCALE,
    K_SCALE,
    PRE_QUANT_SCALE,
    SCALE,
    SCALE_2,
    V_SCALE,
    WEIGHT,
    Algorithm,
)
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.checkpoint.tensor_writer import NewTensor
from r1v_export.quantization.algorithms.shared_scales import has_one_scale
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.groups import linear_groups, linear_shapes
from r1v_export.quantization.number_formats import RANGES
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.targets.hf_unified.write.formats import algorithms
from r1v_export.targets.hub_folder import NOTHING_STORED, cache_scales, part_of, plain_tensors, stored_linears


def unified_tensors(
    checkpoint: Checkpoint, artifact: Artifact, stored: Mapping[str, StoredTensor] = NOTHING_STORED
) -> list[NewTensor]:
    """List the tensors of a unified checkpoint, in model order.

    Args:
        stored: of `BuildInputs`: they are listed, and are not to be asked for.

    Raises:
        UsageError: the layout does not hold one of the linears.
    """
    linears = _Linears(checkpoint, artifact, stored)
    tensors: dict[str, NewTensor] = {}
    for name, shape in expected_tensors(checkpoint.spec).items():
        linear = name.removesuffix(".weight")
        made = (
            linears.tensors(linear)
            if linear in linears.algorithms
            else plain_tensors(checkpoint, artifact, name, shape)
        )
        for tensor in made:
            tensors.setdefault(tensor.name, tensor)  # tied embeddings occur twice
    for tensor in cache_scales(checkpoint, artifact, K_SCALE, V_SCALE):
        tensors[tensor.name] = tensor
    return list(tensors.values())


class _Linears:
    """The quantized linears. The one that is being written is kept encoded: its tensors follow each other."""

    def __init__(self, checkpoint: Checkpoint, artifact: Artifact, stored: Mapping[str, StoredTensor]) -> None:
        self.spec, self.artifact, self._stored = checkpoint.spec, artifact, stored
        self.algorithms = algorithms(checkpoint.spec, artifact.schemes)
        self._shapes = linear_shapes(checkpoint.spec)
        self._group_of = {linear: group.linears for group in linear_groups(checkpoint.spec) for linear in group.linears}
        self._compute = getattr(torch, checkpoint.spec.dtype)
        self._encoded: tuple[str, dict[str, Tensor]] = ("", {})
        self._scale_2: tuple[tuple[str, ...], Tensor] = ((), torch.empty(0))

    def tensors(self, linear: str) -> Iterator[NewTensor]:
        layout = ALGORITHMS[self.algorithms[linear]]
        group_size = self.artifact.schemes[linear].weights.group_size
        names = stored_linears(linear, self.spec)
        out_features, in_features = self._shapes[linear]
        for index, name in enumerate(names):
            for suffix, rule in layout.tensors.items():
                if suffix == PRE_QUANT_SCALE and len(self._group_of[linear]) > 1:
                    continue
                shape = rule.shape_for(out_features // len(names), in_features, group_size)
                dtype = rule.dtypes[-1]
                if suffix == PRE_QUANT_SCALE and not self.artifact.schemes[linear].has_pre_quant_scale:
                    dtype = self._compute  # ones
                chunks = partial(self._chunks, linear, suffix, index, len(names))
                yield NewTensor(f"{name}.{suffix}", dtype, shape, chunks)

    def _chunks(self, linear: str, suffix: str, index: int, parts: int) -> list[Tensor]:
        if self._encoded[0] != linear:
            self._encoded = (linear, self._encode(linear))
        tensor = self._encoded[1][suffix]
        if suffix in (INPUT_SCALE, SCALE_2, PRE_QUANT_SCALE) or not tensor.ndim:
            return [tensor.flatten()]
        return part_of(lambda: tensor, index, parts)

    def _encode(self, linear: str) -> dict[str, Tensor]:
        algorithm = self.algorithms[linear]
        is_stored = f"{stored_linears(linear, self.spec)[0]}.{WEIGHT}" in self._stored
        quantized = self.artifact.parameters(linear) if is_stored else self.artifact.linear(linear)
        tensors = encode(quantized, algorithm)
        if algorithm == "W4A8_AWQ":
            tensors[SCALE_2] = self._shared_scale_2(self._group_of[linear])
        if PRE_QUANT_SCALE in ALGORITHMS[algorithm].tensors:
            factor = quantized.pre_quant_scale
            tensors[PRE_QUANT_SCALE] = torch.ones(quantized.shape[1]) if factor is None else factor
        return tensors

    def _shared_scale_2(self, linears: tuple[str, ...]) -> Tensor:
        """What brings the largest weight of linears that runtimes fuse to FP8's largest number."""
        if self._scale_2[0] != linears:
            largest = torch.stack([_absmax(self.artifact.linear(linear)) for linear in linears]).max()
            self._scale_2 = (linears, largest / RANGES["fp8"][1])
        return self._scale_2[1]


def encode(linear: QuantizedLinear, algorithm: Algorithm) -> dict[str, Tensor]:
    """What the layout has of a linear itself, by suffix."""
    tensors: dict[str, Tensor] = {WEIGHT: linear.qweight, SCALE: linear.scale}
    if ALGORITHMS[algorithm].grouped:
        tensors[WEIGHT] = pack_pairs(linear.qweight, axis=0)
    if ALGORITHMS[algorithm].per_tensor:
        assert has_one_scale([linear]), "a scheme of granularity `tensor` has one scale"
        tensors[SCALE] = linear.scale[0]
    if linear.input_scale is not None:
        tensors[INPUT_SCALE] = linear.input_scale
    return tensors


def _absmax(linear: QuantizedLinear) -> Tensor:
    """The largest magnitude of a weight in groups."""
    qweight_OG = linear.qweight.unflatten(1, (linear.scale.shape[1], -1)).abs().amax(-1)
    absmax: Tensor = (qweight_OG * linear.scale).max()
    return absmax
