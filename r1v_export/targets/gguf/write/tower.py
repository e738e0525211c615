"""A tower with RMSNorm for a runtime that has only LayerNorm: twice as wide, each channel x next to its negative.

llama.cpp computes RMSNorm in the tower of InternViT-6B alone, which it knows by 3200 channels and 45 blocks, and
LayerNorm in every other. Of (x, -x) the mean is 0 and the variance that of x without its mean taken away: there,
LayerNorm is RMSNorm, exactly. So every weight that writes to the tower's channels is stored with its negative, and
every one that reads them with zeros for the second half. Heads double too, with equal scores; the values of the second
half of them are 0.

Only the projector's LayerNorm is another then. Its mean is taken away by the weight that follows: the columns of the
second half hold the sum of the first. Its scale is that of the features with their mean in it: the output of the norm
is sqrt(1 - mean^2 / mean square) times what it should be, 0.999 at worst on r1v-nano.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from r1v_export.model_spec import ModelSpec
from r1v_export.targets.gguf.write.blocks import Blocks
from r1v_export.targets.gguf.write.types import BLOCK

Columns = Literal["", "zeros", "ones", "negative", "sum"]


@dataclass(frozen=True)
class Widening:
    """How a tensor of the tower or the projector is stored in the wider one."""

    rows: tuple[int, ...] = (1,)
    """Signs of the copies along the first axis."""
    columns: Columns = ""
    """What stands behind each patch's channels along the last axis."""


_TABLE: dict[str, Widening] = {
    r"embeddings\.class_embedding": Widening(columns="negative"),
    r"embeddings\.position_embedding": Widening(columns="negative"),
    r"embeddings\.patch_embedding\.(weight|bias)": Widening((1, -1)),
    r"ls[12]": Widening((1, 1)),
    r"norm[12]\.weight": Widening((1, 1)),
    r"attn\.[qk]\.weight": Widening((1, -1), "zeros"),
    r"attn\.[qk]\.bias": Widening((1, -1)),
    r"attn\.v\.weight": Widening((1, 0), "zeros"),
    r"attn\.v\.bias": Widening((1, 0)),
    r"attn\.[qk]_norm\.weight": Widening((1, 1)),
    r"attn\.proj\.weight": Widening((1, -1), "zeros"),
    r"attn\.proj\.bias": Widening((1, -1)),
    r"mlp\.fc1\.weight": Widening(columns="zeros"),
    r"mlp\.fc2\.weight": Widening((1, -1)),
    r"mlp\.fc2\.bias": Widening((1, -1)),
    r"mlp1\.0\.weight": Widening(columns="ones"),
    r"mlp1\.0\.bias": Widening(columns="zeros"),
    r"mlp1\.1\.weight": Widening(columns="sum"),
}


_FILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "negative": torch.neg,
}


def widening_of(name: str) -> Widening:
    """How a tensor is widened, by its canonical name with `attn.qkv` as `attn.q`, `attn.k` and `attn.v`."""
    for pattern, widening in _TABLE.items():
        if re.search(rf"(^|\.){pattern}$", name):
            return widening
    return Widening()


def widen(tensor: Tensor, widening: Widening, spec: ModelSpec, norm: Callable[[], Tensor]) -> Tensor:
    """A plain tensor [...] or [O, ..., I] in the wider tower: up to twice as many of the first and the last axis.

    Args:
        norm: reads the weight of the projector's norm, for columns "sum".
    """
    if widening.columns:
        patches = _patches(tensor.shape[-1], spec)
        parts = tensor.unflatten(-1, (patches, -1))
        if widening.columns == "sum":
            fill = _column_sums(tensor, norm())[..., None, None].expand_as(parts)
        else:
            fill = _FILLS[widening.columns](parts)
        tensor = torch.cat([parts.to(fill.dtype), fill], dim=-1).flatten(-2)
    return torch.cat([sign * tensor for sign in widening.rows]) if widening.rows != (1,) else tensor


def widen_blocks(blocks: Blocks, widening: Widening, spec: ModelSpec, norm: Callable[[], Tensor]) -> Blocks:
    """The same for quantized values, which stay as they are; a negative row has negative scales."""
    values, scale, minimum = blocks.values, blocks.scale, blocks.minimum
    if widening.columns:
        patches = _patches(blocks.values.shape[1] * BLOCK, spec)
        sums = torch.zeros(len(values))
        if widening.columns == "sum":
            sums = _column_sums(blocks.dequantize(), norm())
        # One value for all of a block: as its minimum where it has one, otherwise 7 times a seventh.
        value = 0 if minimum is not None else 7
        values = _join_patches(values, torch.full_like(values, value), patches)
        scale = _join_patches(scale, (sums / value if value else sums * 0)[:, None].expand_as(scale), patches)
        minimum = None if minimum is None else _join_patches(minimum, sums[:, None].expand_as(minimum), patches)
    if widening.rows != (1,):
        values = torch.cat([values] * len(widening.rows))
        scale = torch.cat([sign * scale for sign in widening.rows])
        minimum = None if minimum is None else torch.cat([sign * minimum for sign in widening.rows])
    return replace(blocks, values=values, scale=scale, minimum=minimum)


def _patches(columns: int, spec: ModelSpec) -> int:
    """How many patches' channels stand side by side: several only where the projector reads them."""
    return spec.projector.shuffle**2 if columns == spec.projector.in_features else 1


def _join_patches(first: Tensor, second: Tensor, patches: int) -> Tensor:
    """Join two tensors along axis 1, patch by patch."""
    return torch.cat([part.unflatten(1, (patches, -1)) for part in (first, second)], dim=2).flatten(1, 2)


def _column_sums(weight_OI: Tensor, norm_I: Tensor) -> Tensor:
    """What each output has of the mean of its normed inputs, for each of them: [O]."""
    return (weight_OI.float() * norm_I.float()).mean(1)
