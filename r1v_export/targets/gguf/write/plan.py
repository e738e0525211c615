"""Every tensor of the two GGUF files, in model order, with its type and its shape: known before any weight is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import gguf

from r1v_export.checkpoint.gguf.names import CLASS, MMPROJ_FILE, MODEL_FILE, PATCH, POSITION, Stored, stored_tensors
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.config import BuildConfig
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.recipe import Scheme
from r1v_export.targets.gguf.check_model import needs_widening
from r1v_export.targets.gguf.config import GgufConfig
from r1v_export.targets.gguf.write.mixture import own_type
from r1v_export.targets.gguf.write.tower import widening_of
from r1v_export.targets.gguf.write.types import KEPT, PLAIN, SUPER_BLOCK, GgufType, types_of

FILES = {"both": (MODEL_FILE, MMPROJ_FILE), "model": (MODEL_FILE,), "mmproj": (MMPROJ_FILE,)}
"""`GgufConfig.files` -> the files."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written."""

    file: str
    name: str
    kind: GgufType
    shape: tuple[int, ...]
    """In values, as PyTorch has it: GGUF's own order is the reverse."""
    canonical: str
    """The model's tensor that it is made from."""
    part: str
    """The same, with `attn.q`, `attn.k` or `attn.v` for a part of `attn.qkv`."""
    index: int
    """Which of `parts` equal shares of the rows it is."""
    parts: int
    linear: str | None
    """The linear whose quantized values it holds, if a recipe quantizes it."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        per_block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        return math.prod(self.shape) // per_block * size

    @property
    def is_matrix(self) -> bool:
        """Whether its type is that of the file's matrices, which precision, recipe or build file decide."""
        return _is_matrix(self.canonical, self.shape)


def plan_tensors(config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> list[PlannedTensor]:
    """List the tensors of the files that a build writes.

    Raises:
        UsageError: no type holds one of the linears.
    """
    return list(_Plan(config, spec, schemes).tensors())


class _Plan:
    def __init__(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
        options = config.options("gguf", GgufConfig)
        self.spec, self._files = spec, FILES[options.files]
        self._wanted = {MODEL_FILE: options.model, MMPROJ_FILE: options.mmproj}
        self._matrix = KEPT[spec.dtype] if config.quantized else PLAIN[config.precision]
        self._types = types_of(schemes)
        self._shapes = expected_tensors(spec)
        self._widens = needs_widening(spec)

    def tensors(self) -> Iterator[PlannedTensor]:
        for canonical, stored in stored_tensors(self.spec).items():
            if stored.file in self._files:
                yield from self._parts(canonical, stored)

    def _parts(self, canonical: str, stored: Stored) -> Iterator[PlannedTensor]:
        parts = len(stored.names)
        linear = canonical.removesuffix(".weight")
        is_quantized = canonical.endswith(".weight") and linear in self._types
        for index, name in enumerate(stored.names):
            part = canonical.replace(".qkv.", f".{'qkv'[index]}.") if parts > 1 else canonical
            shape = self._shape(canonical, part, parts)
            yield PlannedTensor(
                file=stored.file,
                name=name,
                kind=self._types[linear] if is_quantized else self._plain_type(canonical, stored.file, name, shape),
                shape=shape,
                canonical=canonical,
                part=part,
                index=index,
                parts=parts,
                linear=linear if is_quantized else None,
            )

    def _plain_type(self, canonical: str, file: str, name: str, shape: tuple[int, ...]) -> GgufType:
        if not _is_matrix(canonical, self._shapes[canonical]):
            return "F32"
        wanted, language = self._wanted[file], self.spec.language
        if wanted is None:
            return self._matrix
        return own_type(name, shape[-1], wanted, language.num_layers, tied=language.tie_word_embeddings)

    def _shape(self, canonical: str, part: str, parts: int) -> tuple[int, ...]:
        shape = self._shapes[canonical]
        if canonical == POSITION:
            shape = (self.spec.tile_patches**2 + 1, shape[-1])
        elif canonical == CLASS:
            shape = shape[-1:]
        shape = (shape[0] // parts, *shape[1:])
        if not self._widens or canonical.startswith("language_model."):
            return shape
        widening = widening_of(part)
        if widening.columns:
            shape = (*shape[:-1], 2 * shape[-1])
        return (len(widening.rows) * shape[0], *shape[1:])


def _is_matrix(canonical: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and canonical not in (PATCH, POSITION)


def plan_warnings(options: GgufConfig, tensors: Sequence[PlannedTensor]) -> tuple[str, ...]:
    """What people should know of the files that a build writes, a sentence each."""
    found = []
    if options.files != "both":
        found.append(f"Only {options.files}.gguf is written, unchecked by a parity gate: llama.cpp needs both files.")
    if options.model == "Q4_K_M":
        replaced = Counter(tensor.kind for tensor in tensors if tensor.shape[-1] % SUPER_BLOCK and _is_own(tensor))
        if replaced:
            kinds = ", ".join(f"{count} {kind}" for kind, count in replaced.most_common())
            found.append(
                f"K-quants have blocks of 256 inputs: matrices of the language model whose rows are no multiple of 256 "
                f"take more bits, as in llama.cpp ({kinds})."
            )
    return tuple(found)


def _is_own(tensor: PlannedTensor) -> bool:
    """Whether it is a matrix of the language model that no recipe quantizes."""
    return tensor.file == MODEL_FILE and tensor.is_matrix and tensor.linear is None
