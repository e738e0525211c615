"""InternViT: a tile of pixels becomes patch features, pixel-shuffled into few, wide tokens.

Parameter names are the published checkpoints'. Shape letters: T tiles, P positions (class token + patches),
E hidden size, N tokens per tile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1v_export.model_spec import ModelSpec, VisionSpec
from r1v_export.reference import operators


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis of x [..., E]."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return operators.rms_norm(x, self.weight, self.eps)


def _norm(spec: VisionSpec) -> nn.Module:
    if spec.norm == "rms_norm":
        return RMSNorm(spec.hidden_size, spec.norm_eps)
    return nn.LayerNorm(spec.hidden_size, spec.norm_eps)


class Embeddings(nn.Module):
    """Cut the tile into patches, put the class token first, add the position embedding."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        vision = spec.vision
        self.tile_patches = spec.tile_patches
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, vision.hidden_size))
        self.patch_embedding = nn.Conv2d(3, vision.hidden_size, vision.patch_size, stride=vision.patch_size)
        self.position_embedding = nn.Parameter(torch.zeros(1, vision.num_positions, vision.hidden_size))

    def forward(self, pixels_T3HW: Tensor) -> Tensor:
        patches_TPE = self.patch_embedding(pixels_T3HW).flatten(2).transpose(1, 2)
        class_T1E = self.class_embedding.expand(pixels_T3HW.shape[0], -1, -1)
        hidden_TPE = torch.cat((class_T1E, patches_TPE), dim=1)
        return hidden_TPE + resize_position_embedding(self.position_embedding, self.tile_patches)


def resize_position_embedding(embedding_1PE: Tensor, side: int) -> Tensor:
    """The position embedding for a side x side patch grid (bicubic); unchanged where the grid is the trained one."""
    trained_side = int((embedding_1PE.shape[1] - 1) ** 0.5)
    if trained_side == side:
        return embedding_1PE
    class_11E, grid_1PE = embedding_1PE[:, :1], embedding_1PE[:, 1:]
    grid_1ESS = grid_1PE.float().unflatten(1, (trained_side, trained_side)).permute(0, 3, 1, 2)
    resized = F.interpolate(grid_1ESS, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat((class_11E, resized.flatten(2).transpose(1, 2).to(embedding_1PE.dtype)), dim=1)


class Attention(nn.Module):
    """Full self-attention; Q and K are normalized over all heads together, before the split into heads."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.qkv = nn.Linear(spec.hidden_size, 3 * spec.hidden_size, bias=spec.qkv_bias)
        self.proj = nn.Linear(spec.hidden_size, spec.hidden_size)
        self.q_norm = RMSNorm(spec.hidden_size, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(spec.hidden_size, spec.norm_eps) if spec.qk_norm else nn.Identity()

    def forward(self, x_TPE: Tensor) -> Tensor:
        q_TPE, k_TPE, v_TPE = self.qkv(x_TPE).unflatten(-1, (3, -1)).unbind(-2)
        attended = F.scaled_dot_product_attention(
            self._split_heads(self.q_norm(q_TPE)), self._split_heads(self.k_norm(k_TPE)), self._split_heads(v_TPE)
        )
        output_TPE: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return output_TPE

    def _split_heads(self, x_TPE: Tensor) -> Tensor:
        heads: Tensor = x_TPE.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


class MLP(nn.Module):
    """Two linears with GELU between them, on x [..., E]."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return output


class Block(nn.Module):
    """Pre-norm layer with layer scale: attention, then MLP, each with a residual connection."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.norm1, self.attn = _norm(spec), Attention(spec)
        self.norm2, self.mlp = _norm(spec), MLP(spec)
        self.ls1 = nn.Parameter(torch.ones(spec.hidden_size))
        self.ls2 = nn.Parameter(torch.ones(spec.hidden_size))

    def forward(self, h_TPE: Tensor) -> Tensor:
        h_TPE = h_TPE + self.ls1 * self.attn(self.norm1(h_TPE))
        mlp_TPE: Tensor = self.mlp(self.norm2(h_TPE))
        return h_TPE + self.ls2 * mlp_TPE


class Encoder(nn.Module):
    """The encoder's layers, under the published name `layers`."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.num_layers))


class VisionModel(nn.Module):
    """pixel_values [T, 3, H, W] -> vision_features [T, N, shuffle**2 * E]; normalized pixels in, no final norm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embeddings = Embeddings(spec)
        self.encoder = Encoder(spec.vision)
        self.tile_patches = spec.tile_patches
        self.shuffle, self.ps_version = spec.projector.shuffle, spec.projector.ps_version

    def forward(self, pixels_T3HW: Tensor) -> Tensor:
        hidden_TPE = self.embeddings(pixels_T3HW)
        for block in self.encoder.layers:
            hidden_TPE = block(hidden_TPE)
        return self.to_features(hidden_TPE)

    def to_features(self, hidden_TPE: Tensor) -> Tensor:
        """Drop the class token, arrange the patches on their grid, pixel-shuffle."""
        grid_TYXE = hidden_TPE[:, 1:].unflatten(1, (self.tile_patches, self.tile_patches))
        return pixel_shuffle(grid_TYXE, self.shuffle, self.ps_version).flatten(1, 2)


def pixel_shuffle(grid_TYXE: Tensor, shuffle: int, version: str) -> Tensor:
    """Join each shuffle x shuffle square of patches into one: [T, Y, X, E] -> [T, Y/s, X/s, s*s*E].

    Within a square, features go row by row, left to right. v1 (the class default of early checkpoints) is the
    same with the token grid transposed: rows become columns.
    """
    tiles, rows, cols, hidden = grid_TYXE.shape
    squares = grid_TYXE.view(tiles, rows // shuffle, shuffle, cols // shuffle, shuffle, hidden)
    order = (0, 1, 3, 2, 4, 5) if version == "v2" else (0, 3, 1, 2, 4, 5)
    tokens = squares.permute(order)
    return tokens.reshape(*tokens.shape[:3], shuffle * shuffle * hidden)
