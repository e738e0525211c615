"""Quantized checkpoints in other people's layouts, packed here by the loops that those formats were published with."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
LANGUAGE = "language_model.model.layers."
Pack = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]

Truth = Mapping[str, tuple[Tensor, Tensor, Tensor]]
"""Linear -> quantized values 0..15, or 0..255 [out, in], scale float16 [out, groups], zero point [out, groups]."""


def random_linear(
    seed: int, out: int, inputs: int, group: int = GROUP, symmetric: bool = False, bits: int = 4
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    qweight = torch.randint(0, 1 << bits, (out, inputs), generator=generator)
    scale = (torch.rand(out, inputs // group, generator=generator) * 0.01 + 0.002).half()
    zero = torch.randint(0, 1 << bits, scale.shape, generator=generator)
    return qweight, scale, torch.full_like(zero, 1 << bits - 1) if symmetric else zero


def pack_awq(qweight: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
    """AutoAWQ's WQLinear_GEMM.from_linear: eight output features to an int32, in the order 0, 2, 4, 6, 1, 3, 5, 7."""

    def words(values_IO: Tensor) -> Tensor:
        packed = torch.zeros(values_IO.shape[0], values_IO.shape[1] // 8, dtype=torch.int64)
        for column in range(packed.shape[1]):
            for place, feature in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                packed[:, column] |= values_IO[:, column * 8 + feature].long() << (place * 4)
        return _int32(packed)

    return {"qweight": words(qweight.T), "qzeros": words(zero.T), "scales": scale.T.contiguous()}


def pack_gptq(qweight: Tensor, scale: Tensor, zero: Tensor, offset: int = 1, bits: int = 4) -> dict[str, Tensor]:
    """AutoGPTQ's QuantLinear.pack: eight input features to an int32, or four of 8 bits; zero points are stored minus
    one."""
    inputs, out, values = qweight.shape[1], qweight.shape[0], 32 // bits
    words = torch.zeros(inputs // values, out, dtype=torch.int64)
    for row in range(inputs):
        words[row // values] |= qweight[:, row].long() << (row % values * bits)
    qzeros = torch.zeros(zero.shape[1], out // values, dtype=torch.int64)
    for column in range(out):
        stored = (zero[column].long() - offset) & (1 << bits) - 1
        qzeros[:, column // values] |= stored << (column % values * bits)
    g_idx = torch.arange(inputs, dtype=torch.int32) // (inputs // zero.shape[1])
    return {"qweight": _int32(words), "qzeros": _int32(qzeros), "scales": scale.T.contiguous(), "g_idx": g_idx}


def act_order_groups(linear: str, inputs: int, group: int) -> Tensor:
    """`g_idx` as AutoGPTQ makes it with desc_act: the group of each input, in an order that activations decide; here a
    random one, the same for linears that read the same tensor."""
    shared = re.sub("[qkv]_proj", "qkv", re.sub("(gate|up)_proj", "gate_up", linear))
    order = torch.randperm(inputs, generator=torch.Generator().manual_seed(zlib.crc32(shared.encode())))
    g_idx = torch.arange(inputs, dtype=torch.int32) // group
    return g_idx[order.argsort()]


def autogptq_weight(tensors: Mapping[str, Tensor], linear: str, bits: int = 4, offset: int = 1) -> np.ndarray:
    """AutoGPTQ's QuantLinear.forward without its CUDA kernel: the weight [in, out] that it multiplies by, as
    scales[g_idx] * (weight - zeros[g_idx])."""
    qweight, qzeros, scales, g_idx = (
        tensors[f"{linear}.{suffix}"].numpy() for suffix in ("qweight", "qzeros", "scales", "g_idx")
    )
    shifts, mask = np.arange(0, 32, bits), (1 << bits) - 1
    weight = (qweight[:, None, :] >> shifts[None, :, None] & mask).reshape(-1, qweight.shape[1])
    zeros = (qzeros[:, :, None] >> shifts[None, None, :] & mask).reshape(qzeros.shape[0], -1) + offset & mask
    return scales.astype(np.float32)[g_idx] * (weight - zeros[g_idx]).astype(np.float32)


def _int32(words: Tensor) -> Tensor:
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def rounded_linear(weight: Tensor, group: int, symmetric: bool = False, bits: int = 4) -> tuple[Tensor, ...]:
    """A weight rounded to nearest as GPTQ's own quantizer does it (`Quantizer.find_params`): values, scale, zero."""
    grouped = weight.float().unflatten(1, (-1, group))
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    largest = (1 << bits) - 1
    scale = ((high - low) / largest).half()
    zero = torch.full_like(scale, 1 << bits - 1) if symmetric else (-low / scale).round()
    qweight = ((grouped / scale[..., None]).round() + zero[..., None]).clamp(0, largest)
    return qweight.flatten(1).long(), scale, zero.long()


def quantized_copy(
    source: Path, out: Path, pack: Pack, config: dict[str, Any], symmetric: bool = False, *, rounded: bool = False
) -> Truth:
    """A copy of a checkpoint whose decoder linears are random values, or its own weights rounded, packed in the
    config's groups (-1: one for each row; desc_act: of inputs that are not neighbors); what they are is returned."""
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    truth = {}
    for seed, name in enumerate(sorted(n for n in tensors if n.startswith(LANGUAGE) and n.endswith("proj.weight"))):
        linear = name.removesuffix(".weight")
        weight = tensors.pop(name)
        group = weight.shape[1] if config["group_size"] == -1 else config["group_size"]
        g_idx = act_order_groups(linear, weight.shape[1], group) if config.get("desc_act") else None
        columns = slice(None) if g_idx is None else g_idx.argsort(stable=True)
        qweight, scale, zero = (
            rounded_linear(weight[:, columns], group, symmetric, config["bits"])
            if rounded
            else random_linear(seed, *weight.shape, group=group, symmetric=symmetric, bits=config["bits"])
        )
        qweight[:, columns] = qweight.clone()
        tensors |= {f"{linear}.{suffix}": tensor for suffix, tensor in pack(qweight, scale, zero).items()}
        if g_idx is not None:
            tensors[f"{linear}.g_idx"] = g_idx
        truth[linear] = (qweight, scale, zero)
    save_file(tensors, out / "model.safetensors")
    set_quantization(out, config)
    return truth


def set_quantization(folder: Path, config: dict[str, Any] | None) -> None:
    """Write config.json's quantization_config."""
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("quantization_config", None)
    if config is not None:
        content["quantization_config"] = config
    path.write_text(json.dumps(content), encoding="utf-8")


AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": GROUP, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": False}
GPTQ_8 = GPTQ | {"bits": 8, "sym": True}
