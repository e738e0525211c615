"""A unified checkpoint computed by PyTorch, read from its files alone: the proof of what was written.

It shares nothing with the writer but the names of tensors: the safetensors library reads, weights are dequantized here,
inputs are rounded here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from r1v_export.checkpoint.names import stored_names
from r1v_export.checkpoint.spec import ModelSpec
from r1v_export.errors import BundleError
from r1v_export.files import read_regular_text
from r1v_export.reference.model import Model, ReferenceEngine
from r1v_export.strict import load_json

_PLAIN = ("BF16", "F16", "F32")
_LARGEST = 448.0
"""Of float8_e4m3fn."""


class UnifiedEngine(ReferenceEngine):
    """The whole model, vision tower included, in float32 on dequantized weights."""

    name = "hf-unified"


class UnifiedFiles:
    """The tensors of a folder by stored name, and how its linears are quantized.

    Raises:
        BundleError: a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.quantization: dict[str, Any] = _json(folder / "hf_quant_config.json")["quantization"]
            index = folder / "model.safetensors.index.json"
            files = set(_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
            self._open = {file: safe_open(folder / file, framework="pt") for file in sorted(files)}
            self._file_of = {name: file for file, content in self._open.items() for name in content.keys()}  # noqa: SIM118
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise _unusable(folder, error) from error

    def has(self, name: str) -> bool:
        """Whether the checkpoint contains a tensor of that name."""
        return name in self._file_of

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        try:
            return self._open[self._file_of[name]].get_tensor(name)
        except KeyError as error:
            raise _unusable(self.folder, f"no tensor {name}") from error

    def scales(self, name: str) -> Tensor:
        """A tensor of scales in float32.

        Raises:
            BundleError: it is not there, or not all of them are positive, finite numbers.
        """
        scale = self.read(name).float()
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise _unusable(self.folder, f"{name} is not all positive, finite numbers")
        return scale

    def is_quantized(self, linear: str) -> bool:
        """Whether a linear has scales, or codes that need them."""
        weight = f"{linear}.weight"
        return self.has(f"{weight}_scale") or (self.has(weight) and not self.dtype(weight).startswith(_PLAIN))

    def dtype(self, name: str) -> str:
        """As the file says it: BF16, F8_E4M3 ..."""
        return str(self._open[self._file_of[name]].get_slice(name).get_dtype())

    def settings(self, linear: str) -> dict[str, Any]:
        """`quant_algo` of a linear, and its group size."""
        layers = self.quantization.get("quantized_layers")
        return self.quantization if layers is None else layers[linear]


def open_unified(folder: Path, spec: ModelSpec, device: str) -> UnifiedEngine:
    """Open a unified checkpoint as an engine computed by PyTorch.

    Raises:
        BundleError: a file is missing or damaged, a tensor is not there, or a scale is not a positive, finite number.
    """
    files = UnifiedFiles(folder)
    with torch.device("meta"):
        model = Model(spec)
    weights, inputs = {}, {}
    for name in model.state_dict():
        stored = stored_names(name, spec)
        linears = [part.removesuffix(".weight") for part in stored]
        if name.endswith(".weight") and files.is_quantized(linears[0]):
            weights[name] = torch.cat([dequantized(files, linear) for linear in linears])
            inputs[name.removesuffix(".weight")] = _input_rounding(files, linears[0])
        else:
            parts = [files.read(part).float() for part in stored]
            weights[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    model.load_state_dict(weights, assign=True)
    model.to(device)
    inputs |= _cache_rounding(files, spec)
    for module, rounding in inputs.items():
        if rounding is not None:
            model.get_submodule(module).register_forward_pre_hook(_hook(rounding))
    return UnifiedEngine(model)


def dequantized(files: UnifiedFiles, linear: str) -> Tensor:
    """The weight of a quantized linear, [out, in] float32."""
    settings, scale = files.settings(linear), files.scales(f"{linear}.weight_scale")
    stored = files.read(f"{linear}.weight")
    if settings["quant_algo"] == "FP8":
        return stored.float() * scale.item()
    if settings["quant_algo"] == "FP8_PER_CHANNEL_PER_TOKEN":
        return torch.stack([row.float() * factor for row, factor in zip(stored, scale, strict=True)])
    weight = torch.empty(2 * stored.shape[0], stored.shape[1])
    for half, nibbles in enumerate((stored % 16, stored // 16)):  # even output features in the low half
        signed = nibbles.float()
        weight[half::2] = torch.where(signed > 7, signed - 16, signed)
    return weight * scale.repeat_interleave(settings["group_size"], dim=1)


def _input_rounding(files: UnifiedFiles, linear: str) -> Callable[[Tensor], Tensor] | None:
    """What happens to a linear's input before the product."""
    algorithm = files.settings(linear)["quant_algo"]
    factor = files.scales(f"{linear}.pre_quant_scale") if files.has(f"{linear}.pre_quant_scale") else None
    static = files.scales(f"{linear}.input_scale").item() if algorithm in ("FP8", "W4A8_AWQ") else None
    if static is None and algorithm != "FP8_PER_CHANNEL_PER_TOKEN" and factor is None:
        return None

    def rounding(x: Tensor) -> Tensor:
        if factor is not None:
            x = x * factor.to(x.device)
        if static is not None:
            return _round(x, torch.tensor(static, device=x.device))
        if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
            largest = x.abs().amax(dim=-1, keepdim=True)
            return _round(x, torch.where(largest > 0, largest / _LARGEST, torch.ones_like(largest)))
        return x

    return rounding


def _cache_rounding(files: UnifiedFiles, spec: ModelSpec) -> dict[str, Callable[[Tensor], Tensor] | None]:
    """What happens to keys and values on their way into an FP8 cache, by the module that they pass."""
    if files.quantization.get("kv_cache_quant_algo") is None:
        return {}
    found: dict[str, Callable[[Tensor], Tensor] | None] = {}
    for layer in range(spec.language.num_layers):
        attention = f"language_model.model.layers.{layer}.self_attn"
        for projection, scale, module in (("k_proj", "k_scale", "cached_key"), ("v_proj", "v_scale", "cached_value")):
            (stored,) = stored_names(f"{attention}.{projection}.weight", spec)
            found[f"{attention}.{module}"] = partial(
                _round, scale=files.scales(f"{stored.removesuffix('weight')}{scale}")
            )
    return found


def _round(x: Tensor, scale: Tensor) -> Tensor:
    scale = scale.to(x.device)
    return (x / scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn).float() * scale


def _hook(rounding: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _, inputs: (rounding(inputs[0]),)


def _json(path: Path) -> Any:
    return load_json(read_regular_text(path), BundleError, "The unified checkpoint cannot be used", where=path)


def _unusable(folder: Path, found: object) -> BundleError:
    return BundleError(
        "The unified checkpoint cannot be used.",
        where=folder,
        expected="hf_quant_config.json and the weights that it describes",
        found=found,
        fix="build the bundle again",
    )
