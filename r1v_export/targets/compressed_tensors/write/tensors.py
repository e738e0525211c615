"""Every tensor of a compressed-tensors checkpoint, in model order, each made when it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.checkpoint.quantized.int4_packing import pack_pairs
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.checkpoint.tensor_writer import NewTensor
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.groups import linear_shapes
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.targets.compressed_tensors.write.formats import formats
from r1v_export.targets.hub_folder import NOTHING_STORED, cache_scales, plain_tensors, stored_linears

PER_WORD = 8
"""4-bit values in an int32."""


def compressed_tensors(
    checkpoint: Checkpoint, artifact: Artifact, stored: Mapping[str, StoredTensor] = NOTHING_STORED
) -> list[NewTensor]:
    """List the tensors of a compressed-tensors checkpoint.

    Args:
        stored: of `BuildInputs`: they are listed, and are not to be asked for.

    Raises:
        UsageError: there is no format for one of the linears.
    """
    linears = _Linears(checkpoint, artifact, stored)
    tensors: dict[str, NewTensor] = {}
    for name, shape in expected_tensors(checkpoint.spec).items():
        linear = name.removesuffix(".weight")
        quantized = name.endswith(".weight") and linear in linears.formats
        made = linears.tensors(linear) if quantized else plain_tensors(checkpoint, artifact, name, shape)
        for tensor in made:
            tensors.setdefault(tensor.name, tensor)  # tied embeddings occur twice
    for tensor in cache_scales(checkpoint, artifact, "self_attn.k_scale", "self_attn.v_scale"):
        tensors[tensor.name] = tensor
    return list(tensors.values())


class _Linears:
    """The quantized linears. The one that is being written is kept: its tensors follow each other."""

    def __init__(self, checkpoint: Checkpoint, artifact: Artifact, stored: Mapping[str, StoredTensor]) -> None:
        self.spec, self.artifact, self._stored = checkpoint.spec, artifact, stored
        self.formats = formats(checkpoint.spec, artifact.schemes)
        self._shapes = linear_shapes(checkpoint.spec)
        self._kept: tuple[str, QuantizedLinear] | None = None

    def tensors(self, linear: str) -> Iterator[NewTensor]:
        names = stored_linears(linear, self.spec)
        out_features, in_features = self._shapes[linear]
        for index, name in enumerate(names):
            for suffix, (dtype, shape) in self._layout(linear, out_features // len(names), in_features).items():
                chunks = partial(self._chunks, linear, suffix, index, len(names))
                yield NewTensor(f"{name}.{suffix}", dtype, shape, chunks)

    def _layout(
        self, linear: str, out_features: int, in_features: int
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Suffix -> dtype and shape of what is stored of a linear, or of one of its parts."""
        scheme = self.artifact.schemes[linear]
        if self.formats[linear] == "pack-quantized":
            groups = in_features // (scheme.weights.group_size or in_features)
            layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
                "weight_packed": (torch.int32, (out_features, _words(in_features))),
                "weight_scale": (torch.float32, (out_features, groups)),
                "weight_shape": (torch.int64, (2,)),
            }
            if scheme.weights.type == "uint4":
                layout["weight_zero_point"] = (torch.int32, (_words(out_features), groups))
            if scheme.has_input_order:
                layout["weight_g_idx"] = (torch.int32, (in_features,))
            return layout
        dtype = torch.float8_e4m3fn if self.formats[linear] == "float-quantized" else torch.int8
        per_tensor = scheme.weights.granularity == "tensor"
        layout = {
            "weight": (dtype, (out_features, in_features)),
            "weight_scale": (torch.float32, (1,) if per_tensor else (out_features, 1)),
        }
        if scheme.inputs is not None and scheme.inputs.mode == "static":
            layout["input_scale"] = (torch.float32, (1,))
        return layout

    def _chunks(self, linear: str, suffix: str, index: int, parts: int) -> list[Tensor]:
        if self._kept is None or self._kept[0] != linear:
            suffix_of_values = "weight_packed" if self.formats[linear] == "pack-quantized" else "weight"
            is_stored = f"{stored_linears(linear, self.spec)[0]}.{suffix_of_values}" in self._stored
            self._kept = (linear, self.artifact.parameters(linear) if is_stored else self.artifact.linear(linear))
        quantized = self._kept[1]
        rows = quantized.shape[0] // parts
        part = slice(index * rows, (index + 1) * rows)
        if suffix == "weight_shape":
            return [torch.tensor([rows, quantized.shape[1]])]
        if suffix == "input_scale":
            assert quantized.input_scale is not None
            return [quantized.input_scale.reshape(1)]
        if suffix == "weight_scale":
            per_tensor = self.artifact.schemes[linear].weights.granularity == "tensor"
            return [quantized.scale[:1] if per_tensor else quantized.scale[part].flatten()]
        if suffix == "weight_g_idx":
            return [quantized.group_index()]
        if suffix == "weight_zero_point":
            assert quantized.zero_point is not None
            return [pack(quantized.zero_point[part].T).T.flatten()]
        if suffix == "weight_packed":
            offset = 8 if quantized.weight_type == "int4" else 0
            return [pack(quantized.by_input_feature(quantized.qweight[part]) + offset).flatten()]
        return [quantized.qweight[part].flatten()]


def pack(values: Tensor) -> Tensor:
    """Pack 4-bit values, int8 0..15 [a, b], along the last axis: int32 [a, b / 8 rounded up], the first lowest."""
    padding = -values.shape[1] % PER_WORD
    return pack_pairs(torch.nn.functional.pad(values, (0, padding))).view(torch.int32)


def _words(count: int) -> int:
    return -(-count // PER_WORD)
