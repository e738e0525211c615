"""The weights of a language model as TensorRT-LLM expects them, on all GPUs: read, quantized, fused; one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.errors import BundleError, CheckpointError
from r1v_export.quantization.algorithms.shared_scales import has_one_scale, share_input_scale, share_weight_scale
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.number_formats import QWEIGHT_DTYPES
from r1v_export.quantization.quantized_linear import QuantizedLinear, all_finite
from r1v_export.targets.tensorrt_llm.checkpoint.encode import BIAS, Part, Parts, encode, encode_plain
from r1v_export.targets.tensorrt_llm.checkpoint.formats import FUSED_MLP, MODULES, PRE_QUANT_SCALES, QuantFormat


class Weights:
    """Weights of a language model in TensorRT-LLM's layout, produced one at a time.

    Args:
        checkpoint: the model.
        artifact: its calibration, or None.
        quant_formats: how each linear is to be stored, by layer and TensorRT-LLM's name.
        dtype: of what is not quantized.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        artifact: Artifact | None,
        quant_formats: Mapping[tuple[int, str], QuantFormat | None],
        dtype: torch.dtype,
    ) -> None:
        self.checkpoint, self.artifact, self.quant_formats, self.dtype = checkpoint, artifact, quant_formats, dtype
        self._shapes = expected_tensors(checkpoint.spec)
        self._latest: tuple[tuple[int, str], list[Parts]] | None = None

    def map(self, name: str) -> Tensor:
        """A tensor in the dtype that it is stored in: the calibration's, where that rewrote it."""
        overrides = self.artifact.overrides if self.artifact else {}
        return overrides[name]() if name in overrides else self.checkpoint.read(name)

    def read(self, name: str) -> Tensor:
        """A tensor in `dtype`."""
        return self.cast(name, self.map(name))

    def cast(self, name: str, tensor: Tensor) -> Tensor:
        """Cast a tensor [...] to the engine's dtype.

        Raises:
            CheckpointError: it is NaN or infinite, or becomes so.
        """
        cast = tensor.to(self.dtype)
        if not all_finite(cast):
            largest = float(tensor.float().abs().max())
            raise CheckpointError(
                "A weight is NaN, infinite, or too large for the engine's dtype.",
                where=name,
                expected=f"finite numbers up to {torch.finfo(self.dtype).max:g}",
                found=f"magnitudes up to {largest:g}",
                fix="use another copy of the checkpoint; large ones fit into bfloat16",
            )
        return cast

    def kv_scale(self, layer: int) -> Tensor | None:
        """[1] float32: the engine has one scale for keys and values, that of the larger ones."""
        scales = self.artifact.kv_scales(layer) if self.artifact else None
        return None if scales is None else torch.tensor([max(scales.key, scales.value)], dtype=torch.float32)

    def linear(self, layer: int, module: str) -> list[Parts]:
        """What one of TensorRT-LLM's linears is made of. The latest is kept: every GPU's file asks for it in turn."""
        if self._latest is None or self._latest[0] != (layer, module):
            self._latest = None
            quant_format = self.quant_formats[layer, module]
            names = _sources(layer, module)
            linears = self._quantized(layer, module) if quant_format else dict.fromkeys(names)
            self._latest = ((layer, module), [self._encode(name, quant_format, linears[name]) for name in names])
        return self._latest[1]

    def blank(self, layer: int, module: str) -> list[Parts]:
        """The same without data, on device "meta"."""
        return [self._blank(name, self.quant_formats[layer, module]) for name in _sources(layer, module)]

    def _blank(self, name: str, quant_format: QuantFormat | None) -> Parts:
        out_features, in_features = self._shapes[f"{name}.weight"]
        weight_OI = torch.empty(out_features, in_features, dtype=self.dtype, device="meta")
        parts = (
            encode_plain(weight_OI)
            if quant_format is None
            else encode(_blank(weight_OI, quant_format), quant_format, self.dtype)
        )
        has_bias = f"{name}.bias" in self._shapes
        return {**parts, BIAS: Part(weight_OI.new_empty(out_features), outputs=0)} if has_bias else parts

    def _encode(self, name: str, quant_format: QuantFormat | None, linear: QuantizedLinear | None) -> Parts:
        if quant_format is None or linear is None:
            parts = encode_plain(self.read(f"{name}.weight"))
        else:
            parts = encode(linear, quant_format, self.dtype)
        bias = f"{name}.bias"
        return {**parts, BIAS: Part(self.read(bias), outputs=0)} if bias in self._shapes else parts

    def _quantized(self, layer: int, module: str) -> dict[str, QuantizedLinear]:
        """The linears that a module is made of, and those that the engine may run with them, with the scales that these
        must share. Calibration for this target shared them; what was imported is rounded again where it did not."""
        quant_format = self.quant_formats[layer, module]
        assert quant_format is not None
        modules = FUSED_MLP if module in FUSED_MLP and quant_format.algorithm == "FP8" else (module,)
        names = [name for fused in modules for name in _sources(layer, fused)]
        linears: Sequence[QuantizedLinear] = [self._calibrated(name, quant_format) for name in names]
        if quant_format.algorithm == "FP8" and not has_one_scale(linears):
            linears = share_weight_scale(names, linears)
        return dict(zip(names, share_input_scale(names, linears), strict=True))

    def _calibrated(self, name: str, quant_format: QuantFormat) -> QuantizedLinear:
        assert self.artifact is not None
        linear = self.artifact.linear(name)
        problem = linear.validate()
        if problem is None and linear.pre_quant_scale is not None and quant_format.algorithm not in PRE_QUANT_SCALES:
            problem = f"a factor on its input, which {quant_format.algorithm} has not"
        if problem:
            raise BundleError(
                f"The calibration of a linear cannot be stored: it has {problem}.",
                where=f"{self.artifact.folder}: {name}",
                fix="calibrate again: r1v-export build --force",
            )
        return linear


def _sources(layer: int, module: str) -> list[str]:
    return [f"language_model.model.layers.{layer}.{part}" for part in MODULES[module]]


def _blank(weight_OI: Tensor, quant_format: QuantFormat) -> QuantizedLinear:
    """A quantized linear of a format, without data."""
    kind = {"FP8": "fp8", "FP8_PER_CHANNEL_PER_TOKEN": "fp8", "W8A8_SQ_PER_CHANNEL": "int8", "W4A16_GPTQ": "uint4"}.get(
        quant_format.algorithm, "int4"
    )
    out_features, in_features = weight_OI.shape
    groups = () if quant_format.group_size is None else (in_features // quant_format.group_size,)
    scale = weight_OI.new_empty((out_features, *groups), dtype=torch.float32)
    return QuantizedLinear(
        qweight=torch.empty_like(weight_OI, dtype=QWEIGHT_DTYPES[kind]),
        weight_type=kind,  # type: ignore[arg-type]
        scale=scale,
        zero_point=torch.empty_like(scale, dtype=torch.int8) if kind == "uint4" else None,
        group_size=quant_format.group_size,
        input_scale=scale.new_empty(()),
    )
