"""The tower and the projector as llama.cpp computes them from `mmproj.gguf`: the proof of what was written.

Nothing is shared with the writer but names of tensors. What llama.cpp does, by its source (tools/mtmd/clip.cpp,
models/internvl.cpp): the class token stands behind the patches; norms are RMSNorm in a tower of 3200 channels and 45
blocks and LayerNorm in all others, those of queries and keys over all heads included; GELU is the tanh approximation;
matrices of quantized types take inputs rounded to 8 bits, 32 or, for K-quants, 256 to a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gguf
import torch
import torch.nn.functional as F
from torch import Tensor

from r1v_export.checkpoint.gguf.names import CLASS, PATCH, POSITION, stored_tensors
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.vision import pixel_shuffle
from r1v_export.targets.gguf.runtime.files import INPUTS_PER_SCALE, BundleFile

_PROJECTOR_EPS = 1e-5
_RMS_TOWER = (3200, 45)

Linear = Callable[[Tensor], Tensor]


def round_inputs(x: Tensor, per_scale: int = 32) -> Tensor:
    """Round x [..., I] to 8 bits, `per_scale` values to a scale: in half precision for 32, in float32 for 256."""
    blocks = x.unflatten(-1, (-1, per_scale))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    values = torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks)).round()
    rounded: Tensor = (values * (scale.half().float() if per_scale == 32 else scale)).flatten(-2)
    return rounded


class Clip:
    """What is in the file, by canonical name."""

    def __init__(self, file: BundleFile, spec: ModelSpec, device: str) -> None:
        self.file, self.spec, self.device = file, spec, device
        self.stored = {name: stored.names for name, stored in stored_tensors(spec).items()}
        vision = gguf.Keys.ClipVision
        self.width, self.blocks = file.size(vision.EMBEDDING_LENGTH), file.size(vision.BLOCK_COUNT)
        self.heads, self.eps = file.size(vision.Attention.HEAD_COUNT), file.number(vision.Attention.LAYERNORM_EPS)

    def read(self, canonical: str, part: int = 0) -> Tensor:
        """A tensor, or its part of a fused one."""
        return self.file.read(self.stored[canonical][part]).to(self.device)

    def linear(self, canonical: str, part: int = 0) -> Linear:
        """A product with its bias, where it has one."""
        name = self.stored[f"{canonical}.weight"][part]
        weight = self.read(f"{canonical}.weight", part)
        has_bias = f"{canonical}.bias" in self.stored
        bias = self.read(f"{canonical}.bias", part) if has_bias else None
        per_scale = INPUTS_PER_SCALE.get(self.file.kind(name))
        return lambda x: F.linear(round_inputs(x, per_scale) if per_scale else x, weight, bias)

    def norm(self, canonical: str) -> Linear:
        """A norm over the last axis, of the tower's kind."""
        weight = self.read(f"{canonical}.weight")
        bias = self.read(f"{canonical}.bias") if f"{canonical}.bias" in self.stored else None
        eps = self.eps
        if (self.width, self.blocks) == _RMS_TOWER:
            return lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
        return lambda x: F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    @property
    def is_wide(self) -> bool:
        """Whether every channel is there twice: the second half is the negative of the first."""
        return self.width != self.spec.vision.hidden_size

    def narrowed(self, hidden_TPE: Tensor) -> Tensor:
        """Hidden states [T, P, width] of the file's tower -> [T, P, E], the class token first."""
        return hidden_TPE[..., : self.spec.vision.hidden_size].roll(1, 1)

    def widened(self, hidden_TPE: Tensor) -> Tensor:
        """The inverse of `narrowed`."""
        hidden_TPE = hidden_TPE.roll(-1, 1)
        return torch.cat([hidden_TPE, -hidden_TPE], dim=-1) if self.is_wide else hidden_TPE


class ClipTower:
    """The tower; only the channels that it was trained with leave it."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.embeddings = clip, ClipEmbeddings(clip)
        self.layers = [ClipLayer(clip, index) for index in range(clip.blocks)]

    def features(self, pixels_T3HW: Tensor) -> Tensor:
        """pixel_values [T, 3, H, W] -> vision_features [T, N, shuffle**2 * E]."""
        *_, hidden_TPE = self.blocks(pixels_T3HW)
        return vision_features(self.clip.spec, hidden_TPE)

    def blocks(self, pixels_T3HW: Tensor) -> Iterator[Tensor]:
        """Output of each block in turn, [T, P, E], with the class token first."""
        hidden_TPE = self.embeddings(pixels_T3HW)
        for layer in self.layers:
            hidden_TPE = layer(hidden_TPE)
            yield self.clip.narrowed(hidden_TPE)


def vision_features(spec: ModelSpec, hidden_TPE: Tensor) -> Tensor:
    """Hidden states [T, P, E], the class token first -> vision_features [T, N, shuffle**2 * E]."""
    grid_TYXE = hidden_TPE[:, 1:].unflatten(1, (spec.tile_patches, spec.tile_patches))
    return pixel_shuffle(grid_TYXE, spec.projector.shuffle, "v2").flatten(1, 2)


class ClipEmbeddings:
    """pixel_values [T, 3, H, W] -> input of the first block, as the file's tower has it."""

    def __init__(self, clip: Clip) -> None:
        self.patch, self.patch_bias = clip.read(PATCH), clip.read(PATCH.replace(".weight", ".bias"))
        self.position, self.class_token = clip.read(POSITION), clip.read(CLASS)

    def __call__(self, pixels_T3HW: Tensor) -> Tensor:
        patches_TPE = F.conv2d(pixels_T3HW, self.patch, self.patch_bias, stride=self.patch.shape[-1])
        patches_TPE = patches_TPE.flatten(2).transpose(1, 2)
        class_T1E = self.class_token.expand(len(patches_TPE), 1, -1)
        return torch.cat([patches_TPE, class_T1E], dim=1) + self.position


class ClipLayer:
    """One block, hidden states [T, P, E] as the file's tower has them."""

    def __init__(self, clip: Clip, index: int) -> None:
        name = f"vision_model.encoder.layers.{index}"
        self.heads = clip.heads
        self.norm1, self.norm2 = clip.norm(f"{name}.norm1"), clip.norm(f"{name}.norm2")
        self.qkv = [clip.linear(f"{name}.attn.qkv", part) for part in range(3)]
        self.qk_norms = [clip.norm(f"{name}.attn.{part}_norm") for part in "qk"] if clip.spec.vision.qk_norm else []
        self.proj, self.fc1, self.fc2 = (clip.linear(f"{name}.{part}") for part in ("attn.proj", "mlp.fc1", "mlp.fc2"))
        self.ls1, self.ls2 = clip.read(f"{name}.ls1"), clip.read(f"{name}.ls2")

    def __call__(self, h_TPE: Tensor) -> Tensor:
        h_TPE = h_TPE + self.ls1 * self.proj(self._attention(self.norm1(h_TPE)))
        return h_TPE + self.ls2 * self.fc2(F.gelu(self.fc1(self.norm2(h_TPE)), approximate="tanh"))

    def _attention(self, x_TPE: Tensor) -> Tensor:
        parts = [linear(x_TPE) for linear in self.qkv]
        parts[:2] = [norm(part) for norm, part in zip(self.qk_norms, parts, strict=False)] or parts[:2]
        heads = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]
        return F.scaled_dot_product_attention(heads[0], heads[1], heads[2]).transpose(1, 2).flatten(2)


class ClipProjector:
    """vision_features [T, N, shuffle**2 * E] -> image_embeds [T, N, hidden]."""

    def __init__(self, clip: Clip) -> None:
        self.squares, self.is_wide = clip.spec.projector.shuffle**2, clip.is_wide
        self.weight, self.bias = clip.read("mlp1.0.weight"), clip.read("mlp1.0.bias")
        self.first, self.second = clip.linear("mlp1.1"), clip.linear("mlp1.3")

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_wide:  # the tower's second half is the negative of its first
            patches = x.unflatten(-1, (self.squares, -1))
            x = torch.cat([patches, -patches], dim=-1).flatten(-2)
        x = F.layer_norm(x, x.shape[-1:], self.weight, self.bias, _PROJECTOR_EPS)
        return self.second(F.gelu(self.first(x), approximate="tanh"))
