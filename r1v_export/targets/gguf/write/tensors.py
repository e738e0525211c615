"""Every tensor of the two GGUF files, in model order, each made when it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import gguf
import numpy as np
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.gguf.names import CLASS, PATCH, POSITION, stored_tensors
from r1v_export.config import BuildConfig
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.reference.vision import resize_position_embedding
from r1v_export.targets.gguf.check_model import needs_widening
from r1v_export.targets.gguf.write.blocks import Blocks, blocks_of, encode_blocks, encode_plain
from r1v_export.targets.gguf.write.tower import widen, widen_blocks, widening_of
from r1v_export.targets.gguf.write.types import KEPT, PLAIN, GgufType, types_of


@dataclass(frozen=True)
class GgufTensor:
    """A tensor to be written."""

    file: str
    name: str
    kind: GgufType
    shape: tuple[int, ...]
    """In values, as PyTorch has it: GGUF's own order is the reverse."""
    encode: Callable[[], np.ndarray]
    """Its bytes, uint8."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        per_block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        return math.prod(self.shape) // per_block * size


def gguf_tensors(checkpoint: Checkpoint, artifact: Artifact | None, config: BuildConfig) -> list[GgufTensor]:
    """List the tensors of both files.

    Raises:
        UsageError: no type holds one of the linears.
    """
    return list(_Tensors(checkpoint, artifact, config).all())


class _Tensors:
    def __init__(self, checkpoint: Checkpoint, artifact: Artifact | None, config: BuildConfig) -> None:
        self.checkpoint, self.artifact, self.spec = checkpoint, artifact, checkpoint.spec
        self._matrix = PLAIN[config.precision] if artifact is None else KEPT[self.spec.dtype]
        self._types: Mapping[str, GgufType] = types_of(artifact.schemes) if artifact else {}
        self._widens = needs_widening(self.spec)
        self._kept: tuple[str, Blocks] | None = None

    def all(self) -> Iterator[GgufTensor]:
        for canonical, stored in stored_tensors(self.spec).items():
            linear = canonical.removesuffix(".weight")
            parts = len(stored.names)
            for index, name in enumerate(stored.names):
                part = canonical.replace(".qkv.", f".{'qkv'[index]}.") if parts > 1 else canonical
                if canonical.endswith(".weight") and linear in self._types:
                    kind, encode = self._types[linear], partial(self._quantized, linear, part, index, parts, name)
                else:
                    kind = self._plain_type(canonical)
                    encode = partial(self._plain, canonical, part, index, parts, name, kind)
                yield GgufTensor(stored.file, name, kind, self._shape(canonical, part, parts), encode)

    def _plain_type(self, canonical: str) -> GgufType:
        shape = self.checkpoint.tensors[canonical].shape
        return self._matrix if len(shape) == 2 and canonical != PATCH else "F32"

    def _shape(self, canonical: str, part: str, parts: int) -> tuple[int, ...]:
        shape = self.checkpoint.tensors[canonical].shape
        if canonical == POSITION:
            shape = (self.spec.tile_patches**2 + 1, shape[-1])
        elif canonical == CLASS:
            shape = shape[-1:]
        shape = (shape[0] // parts, *shape[1:])
        if not self._widens_tensor(canonical):
            return shape
        widening = widening_of(part)
        if widening.columns:
            shape = (*shape[:-1], 2 * shape[-1])
        return (len(widening.rows) * shape[0], *shape[1:])

    def _widens_tensor(self, canonical: str) -> bool:
        return self._widens and not canonical.startswith("language_model.")

    def _plain(self, canonical: str, part: str, index: int, parts: int, name: str, kind: GgufType) -> np.ndarray:
        tensor = self._read(canonical)
        if canonical == POSITION:
            # llama.cpp puts the class token behind the patches, and adds this table as it is.
            tensor = resize_position_embedding(tensor, self.spec.tile_patches)[0].roll(-1, 0)
        elif canonical == CLASS:
            tensor = tensor.flatten()
        rows = tensor.shape[0] // parts
        tensor = tensor[index * rows : (index + 1) * rows]
        if self._widens_tensor(canonical):
            tensor = widen(tensor, widening_of(part), self.spec, self._projector_norm)
        return encode_plain(tensor, kind, name)

    def _quantized(self, linear: str, part: str, index: int, parts: int, name: str) -> np.ndarray:
        if self._kept is None or self._kept[0] != linear:  # its parts follow each other
            assert self.artifact is not None
            self._kept = (linear, blocks_of(self.artifact.linear(linear)))
        blocks = self._kept[1]
        rows = len(blocks.values) // parts
        blocks = blocks.rows(slice(index * rows, (index + 1) * rows))
        if self._widens_tensor(linear):
            blocks = widen_blocks(blocks, widening_of(part), self.spec, self._projector_norm)
        return encode_blocks(blocks, name)

    def _read(self, canonical: str) -> Tensor:
        rewritten = self.artifact.overrides.get(canonical) if self.artifact else None
        return rewritten() if rewritten is not None else self.checkpoint.read(canonical)

    def _projector_norm(self) -> Tensor:
        return self._read("mlp1.0.weight")
