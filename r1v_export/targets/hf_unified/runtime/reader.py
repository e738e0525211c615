"""A unified checkpoint computed by PyTorch, read from its files alone: a check of what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1v_export.model_spec import ModelSpec
from r1v_export.reference.model import ReferenceEngine
from r1v_export.targets.hub_reader import LARGEST, QuantizedFolder, Rounding, open_model, read_json, round_fp8

_PLAIN = ("BF16", "F16", "F32")


class UnifiedEngine(ReferenceEngine):
    """The whole model, vision tower included, in float32 on dequantized weights."""

    name = "hf-unified"


class UnifiedFiles(QuantizedFolder):
    """A folder in modelopt's unified layout."""

    expected = "hf_quant_config.json and the weights that it describes"

    def read_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = read_json(self.folder / "hf_quant_config.json")["quantization"]
        return settings

    def is_quantized(self, linear: str) -> bool:
        """Whether a linear has scales, or quantized values that need them."""
        weight = f"{linear}.weight"
        return self.has(f"{weight}_scale") or (self.has(weight) and not self.dtype(weight).startswith(_PLAIN))

    def settings(self, linear: str) -> dict[str, Any]:
        """`quant_algo` of a linear, and its group size."""
        layers = self.quantization.get("quantized_layers")
        return self.quantization if layers is None else layers[linear]

    def dequantized(self, linear: str) -> Tensor:
        settings, scale = self.settings(linear), self.scales(f"{linear}.weight_scale")
        stored = self.read(f"{linear}.weight")
        if settings["quant_algo"] == "FP8":
            return stored.float().mul_(scale.item())
        if settings["quant_algo"] == "FP8_PER_CHANNEL_PER_TOKEN":
            return stored.float().mul_(scale.reshape(-1, 1))
        # In place, and no more than one weight at a time: a block of the 38B has linears of 142 million values.
        weight = torch.empty(2 * stored.shape[0], stored.shape[1])
        for half in range(2):  # even output features in the low half
            # Two's complement: with the sign's bit the other way round, -8..7 is 0..15.
            weight[half::2] = (stored >> 4 * half & 15) ^ 8
        weight.sub_(8)
        weight.unflatten(1, (-1, settings["group_size"])).mul_(scale[:, :, None])
        return weight

    def input_rounding(self, linear: str) -> Rounding | None:
        algorithm = self.settings(linear)["quant_algo"]
        factor = self.scales(f"{linear}.pre_quant_scale") if self.has(f"{linear}.pre_quant_scale") else None
        static = self.scales(f"{linear}.input_scale").item() if algorithm in ("FP8", "W4A8_AWQ") else None
        if static is None and algorithm != "FP8_PER_CHANNEL_PER_TOKEN" and factor is None:
            return None

        def rounding(x: Tensor) -> Tensor:
            if factor is not None:
                x = x * factor.to(x.device)
            if static is not None:
                return round_fp8(x, torch.tensor(static, device=x.device))
            if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
                largest = x.abs().amax(dim=-1, keepdim=True)
                return round_fp8(x, torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest)))
            return x

        return rounding

    def cache_scales(self, attention: str) -> tuple[str, str] | None:
        if self.quantization.get("kv_cache_quant_algo") is None:
            return None
        return f"{attention}.k_proj.k_scale", f"{attention}.v_proj.v_scale"


def open_unified(folder: Path, spec: ModelSpec, device: str) -> UnifiedEngine:
    """Open a unified checkpoint as an engine computed by PyTorch.

    Raises:
        BundleError: a file is missing or damaged, a tensor is not there, or a scale is not a positive, finite number.
    """
    return UnifiedEngine(open_model(UnifiedFiles(folder), spec, device))
