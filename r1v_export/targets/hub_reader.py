"""Quantized Hugging Face folders computed by PyTorch, from their files alone: what the readers of layouts share.

They prove what was written, so nothing here is shared with the writers but the names of tensors: the safetensors
library reads, weights are dequantized by the layout's reader, inputs are rounded here.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from r1v_export.checkpoint.names import EMBED_TOKENS, stored_names
from r1v_export.errors import BundleError
from r1v_export.files import read_regular_text
from r1v_export.gpus import require_device
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.blockwise import TorchBlocks
from r1v_export.reference.language import Attention
from r1v_export.reference.model import Model

LARGEST = 448.0
"""Of float8_e4m3fn."""

Rounding = Callable[[Tensor], Tensor]


class QuantizedFolder(ABC):
    """The tensors of a folder by stored name, and how its linears are quantized.

    Raises:
        BundleError: a file is missing or damaged.
    """

    expected: ClassVar[str]
    """What such a folder holds, for errors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.quantization = self.read_settings()
            index = folder / "model.safetensors.index.json"
            files = set(read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
            self._open = {file: safe_open(folder / file, framework="pt") for file in sorted(files)}
            self._file_of = {name: file for file, content in self._open.items() for name in content.keys()}  # noqa: SIM118
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise self.unusable(error) from error

    @abstractmethod
    def read_settings(self) -> dict[str, Any]:
        """The folder's own description of its quantization."""

    @abstractmethod
    def is_quantized(self, linear: str) -> bool:
        """Whether a linear, by its stored name, is quantized."""

    @abstractmethod
    def dequantized(self, linear: str) -> Tensor:
        """The weight of a quantized linear, [out, in] float32."""

    @abstractmethod
    def input_rounding(self, linear: str) -> Rounding | None:
        """What happens to a quantized linear's input before the product."""

    @abstractmethod
    def cache_scales(self, attention: str) -> tuple[str, str] | None:
        """Names of the scales of the keys and values that an attention caches; None where they are not quantized."""

    def has(self, name: str) -> bool:
        """Whether the folder contains a tensor of that name."""
        return name in self._file_of

    def read(self, name: str) -> Tensor:
        """A tensor as stored."""
        try:
            tensor: Tensor = self._open[self._file_of[name]].get_tensor(name)
        except KeyError as error:
            raise self.unusable(f"no tensor {name}") from error
        return tensor

    def scales(self, name: str) -> Tensor:
        """A tensor of scales in float32.

        Raises:
            BundleError: it is not there, or not all of them are positive, finite numbers.
        """
        scale = self.read(name).float()
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise self.unusable(f"{name} is not all positive, finite numbers")
        return scale

    def dtype(self, name: str) -> str:
        """As the file says it: BF16, F8_E4M3 ..."""
        return str(self._open[self._file_of[name]].get_slice(name).get_dtype())

    def unusable(self, found: object) -> BundleError:
        """Return the error for a folder that cannot be used."""
        return BundleError(
            "The quantized checkpoint cannot be used.",
            where=self.folder,
            expected=self.expected,
            found=found,
            fix="build the bundle again",
        )


def open_model(files: QuantizedFolder, spec: ModelSpec, device: str) -> Model:
    """The whole model, vision tower included, in float32 on dequantized weights.

    Raises:
        BundleError: a tensor is not there, or a scale is not a positive, finite number.
    """
    require_device(device)
    with torch.device("meta"):
        model = Model(spec)
    _fill(files, spec, model, "")
    model.to(device)
    return model


def open_blocks(name: str, files: QuantizedFolder, spec: ModelSpec) -> TorchBlocks:
    """The same model with one block of weights held at a time. Its blocks raise what `open_model` raises.

    Args:
        name: of the engine.
    """
    return TorchBlocks(name, spec, partial(_fill, files, spec, keep_table=True))


def _fill(
    files: QuantizedFolder, spec: ModelSpec, module: nn.Module, prefix: str, keep_table: bool = False
) -> nn.Module:
    """Give a module its weights, and hooks that round inputs.

    Args:
        prefix: of its names in the whole model.
        keep_table: leave the embedding table in the dtype that it is stored in.
    """
    weights: dict[str, Tensor] = {}
    roundings: dict[str, Rounding | None] = {}
    for name in module.state_dict():
        stored = stored_names(prefix + name, spec)
        linears = [part.removesuffix(".weight") for part in stored]
        if name.endswith(".weight") and files.is_quantized(linears[0]):
            parts = [files.dequantized(linear) for linear in linears]
            roundings[name.removesuffix(".weight")] = files.input_rounding(linears[0])
        elif keep_table and prefix + name == EMBED_TOKENS:
            parts = [files.read(part) for part in stored]
        else:
            parts = [files.read(part).float() for part in stored]
        weights[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    module.load_state_dict(weights, assign=True)
    for name, child in module.named_modules():
        if isinstance(child, Attention):
            roundings |= _cache_rounding(files, spec, name, prefix)
    for name, rounding in roundings.items():
        if rounding is not None:
            module.get_submodule(name).register_forward_pre_hook(_hook(rounding))
    return module


def _cache_rounding(files: QuantizedFolder, spec: ModelSpec, attention: str, prefix: str) -> dict[str, Rounding]:
    """What happens to keys and values on their way into an FP8 cache, by the module that they pass."""
    (stored,) = stored_names(f"{prefix}{attention}.k_proj.weight", spec)
    names = files.cache_scales(stored.removesuffix(".k_proj.weight"))
    return {
        f"{attention}.{module}": partial(round_fp8, scale=files.scales(name))
        for module, name in zip(("cached_key", "cached_value"), names or (), strict=False)
    }


def round_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """Round x [...] to E4M3 multiples of `scale`, which broadcasts."""
    scale = scale.to(x.device)
    return (x / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float() * scale


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(read_regular_text(path))


def _hook(rounding: Rounding) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _, inputs: (rounding(inputs[0]),)
