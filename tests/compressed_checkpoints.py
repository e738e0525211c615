"""Checkpoints that the package compressed-tensors quantizes, compresses and describes, as llm-compressor does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
from compressed_tensors.quantization.quant_args import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen2Config

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.reference.model import Model, load
from tests.quantized_checkpoints import act_order_groups

LARGEST_INPUT = 8.0
"""What static scales of inputs and cached values are made for, where no range is given."""


class Compressed:
    """A model in the package's hands: what it stored, and what it makes of that again."""

    def __init__(self, model: nn.Module, compressor: ModelCompressor) -> None:
        self.model = model
        self.stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.schemes = {
            name: module.quantization_scheme
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and hasattr(module, "quantization_scheme")
        }
        compressor.decompress_model(model)
        self.weights = {name: model.get_submodule(name).weight.detach() for name in self.schemes}
        """By linear, in the dtype of its scales."""


def compress(
    source: Path,
    out: Path,
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.bfloat16,
    largest_inputs: Mapping[str, float] | None = None,
    model: nn.Module | None = None,
) -> Compressed:
    """A copy of a checkpoint in one weight file, quantized to nearest as the package's configuration says.

    Args:
        config: of `QuantizationConfig`.
        dtype: of the model, and so of its scales.
        largest_inputs: linear -> the largest magnitude of its inputs.
        model: of another class, with the source's weights and under its names; ours if omitted.
    """
    shutil.copytree(source, out)
    model = model or our_model(Checkpoint.open(source), dtype)
    apply_quantization_config(model, QuantizationConfig.model_validate(config))
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is not None:
            _quantize(name, module, (largest_inputs or {}).get(name, LARGEST_INPUT))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, out / "model.safetensors")
    compressor.update_config(str(out))
    return Compressed(model, compressor)


def our_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Model:
    """Our model with the weights of a checkpoint, as the package can quantize it."""
    model, language = load(checkpoint, dtype), checkpoint.spec.language
    assert not language.tie_word_embeddings
    model.config = Qwen2Config(  # the package asks it for the shape of the cache
        hidden_size=language.hidden_size,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_heads,
        num_key_value_heads=language.num_kv_heads,
    )
    return model


def _quantize(name: str, module: nn.Module, largest_input: float) -> None:
    """Scales and zero points of a module, by the package's own formula."""
    scheme = module.quantization_scheme
    module.quantization_status = QuantizationStatus.FROZEN
    if hasattr(module, "k_scale"):
        for scale in (module.k_scale, module.v_scale):
            scale.data.fill_(largest_input / 448)
        return
    if scheme.input_activations is not None and not scheme.input_activations.dynamic:
        low, high = -torch.ones(1) * largest_input / 2, torch.ones(1) * largest_input
        _set(module, "input", *calculate_qparams(low, high, scheme.input_activations))
    weight, args = module.weight.detach(), scheme.weights
    if hasattr(module, "weight_g_idx"):
        group_I = act_order_groups(name, weight.shape[1], args.group_size)
        module.weight_g_idx.data.copy_(group_I)
        weight = weight[:, group_I.argsort(stable=True)]
    rows = {"tensor": weight.reshape(1, 1, -1), "channel": weight[:, None], "group": _grouped(weight, args)}
    rows = rows[args.strategy]
    scale, zero_point = calculate_qparams(rows.amin(-1), rows.amax(-1), args)
    _set(module, "weight", *(t.reshape(-1) if args.strategy == "tensor" else t for t in (scale, zero_point)))


def _grouped(weight: Tensor, args: QuantizationArgs) -> Tensor:
    return weight.unflatten(1, (-1, args.group_size)) if args.group_size else weight


def _set(module: nn.Module, kind: str, scale: Tensor, zero_point: Tensor) -> None:
    for what, value in (("scale", scale), ("zero_point", zero_point)):
        parameter = getattr(module, f"{kind}_{what}", None)
        if parameter is not None:
            assert parameter.shape == value.shape
            parameter.data.copy_(value)
