"""A compressed-tensors checkpoint computed by PyTorch, read from its files alone: the proof of what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1v_export.model_spec import ModelSpec
from r1v_export.reference.model import ReferenceEngine
from r1v_export.targets.hub_reader import LARGEST, QuantizedFolder, Rounding, open_model, read_json, round_fp8

_VALUES_AT_ONCE = 1 << 20
"""Of a weight, for which zero points and scales are spread."""


class CompressedEngine(ReferenceEngine):
    """The whole model, vision tower included, in float32 on dequantized weights."""

    name = "compressed-tensors"


class CompressedFiles(QuantizedFolder):
    """A folder whose config.json has a `quantization_config` of compressed-tensors."""

    expected = "config.json with a quantization_config, and the weights that it describes"

    def read_settings(self) -> dict[str, Any]:
        config: dict[str, Any] = read_json(self.folder / "config.json")["quantization_config"]
        self._group_of = {name: group for group in config["config_groups"].values() for name in group["targets"]}
        return config

    def is_quantized(self, linear: str) -> bool:
        return linear in self._group_of

    def dequantized(self, linear: str) -> Tensor:
        args = self._group_of[linear]["weights"]
        scale = self.scales(f"{linear}.weight_scale")
        if args["num_bits"] == 8:
            return self.read(f"{linear}.weight").float().mul_(scale)  # [1] or [out, 1]
        rows, columns = self.read(f"{linear}.weight_shape").tolist()
        weight = _unpacked(self.read(f"{linear}.weight_packed"))[:, :columns].contiguous()
        zero = torch.full_like(scale, 8.0)
        if not args["symmetric"]:
            zero = _unpacked(self.read(f"{linear}.weight_zero_point").T).T[:rows]
        group_I = self._group_index(linear, args, columns)
        # In place, a few rows at a time: zero points and scales are spread to the weight's size.
        step = max(1, _VALUES_AT_ONCE // columns)
        for part, zero_part, scale_part in zip(weight.split(step), zero.split(step), scale.split(step), strict=True):
            part.sub_(zero_part[:, group_I]).mul_(scale_part[:, group_I])
        return weight

    def _group_index(self, linear: str, args: dict[str, Any], columns: int) -> Tensor:
        """The group of each input feature, int64 [columns].

        Raises:
            BundleError: groups are not of the declared size.
        """
        if args.get("actorder") != "group":
            return torch.arange(columns) // int(args["group_size"])
        name = f"{linear}.weight_g_idx"
        group_I = self.read(name).long()
        expected = torch.arange(columns) // int(args["group_size"])
        if not torch.equal(group_I.sort().values, expected):
            raise self.unusable(f"{name} does not give each group {args['group_size']} inputs")
        return group_I

    def input_rounding(self, linear: str) -> Rounding | None:
        args = self._group_of[linear]["input_activations"]
        if args is None:
            return None
        largest = LARGEST if args["type"] == "float" else 127.0
        static = None if args["dynamic"] else self.scales(f"{linear}.input_scale")

        def rounding(x: Tensor) -> Tensor:
            if static is not None:
                scale = static.to(x.device)
            else:
                peak = x.abs().amax(dim=-1, keepdim=True)
                scale = torch.where(peak > 0, peak / largest, torch.ones_like(peak))
            if args["type"] == "float":
                return round_fp8(x, scale)
            return (x / scale).round().clamp(-128, 127) * scale

        return rounding

    def cache_scales(self, attention: str) -> tuple[str, str] | None:
        if self.quantization.get("kv_cache_scheme") is None:
            return None
        return f"{attention}.k_scale", f"{attention}.v_scale"


def open_compressed(folder: Path, spec: ModelSpec, device: str) -> CompressedEngine:
    """Open a folder as an engine.

    Raises:
        BundleError: a file is missing or damaged, a tensor is not there, or a scale is not a positive, finite number.
    """
    return CompressedEngine(open_model(CompressedFiles(folder), spec, device))


def _unpacked(words: Tensor) -> Tensor:
    """The 4-bit values in int32 words, along the last axis, eight times as many, in float32; the lowest first."""
    values = torch.empty(*words.shape, 8)
    for place in range(8):
        values[..., place] = (words >> (4 * place)) & 15
    return values.flatten(-2)
