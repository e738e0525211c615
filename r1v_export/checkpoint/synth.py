"""Random checkpoints in the official layouts, of any family version and any size, written with bounded memory.

A tensor's values depend on its canonical name, its size and the seed alone: the same weights come out in every
layout, however they are cut into shards.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from r1v_export.checkpoint.config import Configuration, DType, Layout, read_configuration
from r1v_export.checkpoint.hub_files import CONFIG, write_configuration_code
from r1v_export.checkpoint.names import expected_tensors, stored_names
from r1v_export.checkpoint.presets import PRESETS
from r1v_export.checkpoint.quantized.awq import TENSORS as AWQ_TENSORS
from r1v_export.checkpoint.synth_files import write_auxiliary_files, write_native_files
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.checkpoint.tensor_store import open_tensors
from r1v_export.checkpoint.tensor_writer import NewTensor, write_tensors
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.files import fill_folder
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.quoting import did_you_mean, shorten_value

_CHUNK = 1 << 24  # elements made at a time
_STD = 0.02
_LAYER_SCALE = 0.1
_AWQ_SCALE = _STD / 4.6  # over the standard deviation of 0 to 15
_DECODER = "language_model.model.layers."
_SPARSE_BLOCK, _SPARSE_RUN = 1 << 20, 1 << 17
"""Of so many elements of a sparse matrix so many are filled; the rest is a hole. Smaller runs, such as a few values in
every row, take as much of the disk, and minutes to delete: a file system keeps an extent for each."""
_AWQ_GROUP = 128
_AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": _AWQ_GROUP, "zero_point": True}
_AWQ_SPARSE_GROUPS = 8
"""Of so many groups of a sparse checkpoint one is filled. In holes quantized values and zero points are 0: so are the
weights."""

Weights: TypeAlias = Literal["random", "sparse", "empty"]


def synthesize(
    folder: Path,
    *,
    preset: str,
    vision_layers: int | None = None,
    language_layers: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    layout: Layout = "internvl_chat",
    dtype: DType = "bfloat16",
    shards: int | None = None,
    weights: Weights = "random",
    awq: bool = False,
    seed: int = 0,
    on_progress: ProgressCallback = ignore_progress,
) -> Path:
    """Write a random checkpoint: weights, configuration and tokenizer.

    Args:
        folder: made if it is not there; must be empty.
        preset: a key of `presets.PRESETS`, such as "r1v3-38b", "internvl3-1b" or "nano".
        vision_layers: ViT blocks instead of the preset's.
        language_layers: decoder layers instead of the preset's.
        overrides: further keys of the `internvl_chat` config.json to change, dotted:
            {"llm_config.hidden_size": 256}.
        layout: weight names and configuration of `internvl_chat` or of transformers' native `internvl`.
        dtype: of every tensor.
        shards: number of weight files; by default files of about 5 GB.
        weights: "random" for all; "sparse" for an eighth of every matrix, in runs with holes between, so that it can be
            calibrated and takes an eighth of the disk; "empty" for nothing but holes: zeros, no disk taken.
            Files have their true size always.
        awq: decoder linears of random 4-bit values, as AutoAWQ's `gemm` layout stores them, in groups of 128.
        seed: another seed, other weights.
        on_progress: called with the bytes written so far and in all.

    Returns:
        The folder.

    Raises:
        UsageError: an unknown preset, a folder that holds something, or widths that AWQ's groups do not divide.
        CheckpointError: overrides that make no model.
        CapabilityError: not enough disk.
    """
    folder = Path(folder)
    config = _resolve_config(preset, vision_layers, language_layers, overrides or {}, dtype)
    if awq:
        config["llm_config"]["quantization_config"] = _AWQ
    with tempfile.TemporaryDirectory() as scratch:
        _write_and_read(Path(scratch), config, preset, layout)  # refuses overrides that make no model
    with fill_folder(folder, last=CONFIG) as unfinished:
        configuration = _write_and_read(unfinished, config, preset, layout)
        spec, unused_layers = configuration.spec, configuration.unused_vision_layers
        all_layers = spec.vision.model_copy(update={"num_layers": spec.vision.num_layers + len(unused_layers)})
        parts = _parts(spec.model_copy(update={"vision": all_layers}), getattr(torch, dtype), awq)
        tensors = [part.new_tensor(seed) for part in parts]
        total = sum(tensor.nbytes for tensor in tensors)
        if weights != "empty":
            _check_disk(folder, total if weights == "random" else sum(part.sparse_bytes for part in parts))
        for done in write_tensors(unfinished, tensors, shards=shards, sparse=weights != "random"):
            if weights == "random":
                on_progress(done, total)
        if weights == "sparse":
            stored, done = open_tensors(unfinished), 0
            for part in parts:
                part.fill_sparsely(stored[part.name], seed)
                on_progress(done := done + stored[part.name].nbytes, total)
    return folder


def _resolve_config(
    preset: str,
    vision_layers: int | None,
    language_layers: int | None,
    overrides: Mapping[str, Any],
    dtype: DType,
) -> dict[str, Any]:
    if preset not in PRESETS:
        fix = did_you_mean(preset, PRESETS) or "name one of these"
        raise UsageError("There is no such preset.", expected=", ".join(PRESETS), found=shorten_value(preset), fix=fix)
    config = PRESETS[preset].config() | {"torch_dtype": dtype}
    layers = {"vision_config.num_hidden_layers": vision_layers, "llm_config.num_hidden_layers": language_layers}
    for key, value in [(key, value) for key, value in layers.items() if value is not None] + list(overrides.items()):
        *parents, last = key.split(".")
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                fix = f"set {key.rpartition('.')[0]} itself, or name a setting of config.json"
                raise UsageError("A setting names a part of something that has no parts.", found=key, fix=fix)
        section[last] = value
    return config


def _write_and_read(folder: Path, config: dict[str, Any], preset: str, layout: Layout) -> Configuration:
    """Write everything but the weights; what is then read says what the weights are, as it will for everyone."""
    write_auxiliary_files(folder, config, PRESETS[preset])
    tied = bool(config["llm_config"]["tie_word_embeddings"])
    configuration = read_configuration(folder, stores_lm_head=not tied, stored_dtype="bfloat16")
    if layout == "internvl_chat":
        write_configuration_code(folder, config)
        return configuration
    write_native_files(folder, config, configuration.spec)
    return read_configuration(folder, stores_lm_head=not tied, stored_dtype="bfloat16")


def _check_disk(folder: Path, total: int) -> None:
    free = shutil.disk_usage(folder).free
    if total > free:
        raise CapabilityError(
            "There is not enough disk for the checkpoint.",
            where=folder,
            expected=f"{total / 1e9:.1f} GB",
            found=f"{free / 1e9:.1f} GB free",
            fix="name fewer layers, or write it sparse",
        )


@dataclass(frozen=True)
class _Part:
    """Some rows of a canonical tensor, which are stored as one tensor: of q, k and v joined, each is one."""

    name: str
    canonical: str
    shape: tuple[int, ...]
    """Of the canonical tensor."""
    rows: range
    dtype: torch.dtype
    block: int
    run: int
    """Of each `block` elements of the canonical tensor, a sparse checkpoint holds the first `run`."""

    @property
    def span(self) -> range:
        """Its elements within the canonical tensor."""
        columns = math.prod(self.shape[1:])
        return range(self.rows.start * columns, self.rows.stop * columns)

    @property
    def sparse_bytes(self) -> int:
        """About what it takes of the disk in a sparse checkpoint."""
        return len(self.span) * self.dtype.itemsize * self.run // self.block

    def new_tensor(self, seed: int) -> NewTensor:
        chunks = partial(_random_chunks, self.canonical, math.prod(self.shape), self.span, seed)
        return NewTensor(self.name, self.dtype, (len(self.rows), *self.shape[1:]), chunks)

    def fill_sparsely(self, stored: StoredTensor, seed: int) -> None:
        """Write into the holes of a file: the runs of a matrix, all of a vector."""
        span, elements = self.span, math.prod(self.shape)
        with stored.file.open("r+b") as file:
            for start in range(span.start - span.start % self.block, span.stop, self.block):
                wanted = slice(max(span.start - start, 0), span.stop - start)
                values = _random(self.canonical, start, min(self.run, elements - start), seed)[wanted].to(stored.dtype)
                file.seek(stored.offset + max(start - span.start, 0) * stored.dtype.itemsize)
                file.write(values.view(torch.uint8).numpy().data)


def _parts(spec: ModelSpec, dtype: torch.dtype, awq: bool) -> list[_Part]:
    parts: dict[str, _Part] = {}
    for canonical, shape in expected_tensors(spec).items():
        if awq and canonical.startswith(_DECODER) and len(shape) == 2:
            parts |= {part.name: part for part in _awq_parts(canonical.removesuffix(".weight"), shape, dtype, spec)}
            continue
        names = stored_names(canonical, spec)
        count = shape[0] // len(names)
        block, run = (_SPARSE_BLOCK, _SPARSE_RUN) if len(shape) > 1 else (_CHUNK, _CHUNK)
        for index, name in enumerate(names):
            rows = range(index * count, (index + 1) * count)
            parts.setdefault(name, _Part(name, canonical, shape, rows, dtype, block, run))
    return list(parts.values())


def _awq_parts(linear: str, weight: tuple[int, ...], dtype: torch.dtype, spec: ModelSpec) -> Iterator[_Part]:
    """The tensors that AWQ stores of a linear of `weight` [out, in]: inputs, or groups of them, are their rows."""
    out_features, in_features = weight
    if in_features % _AWQ_GROUP or out_features % 8:
        raise UsageError(
            "AWQ does not hold this linear.",
            where=linear,
            expected=f"in-features that are a multiple of {_AWQ_GROUP}, and out-features of 8",
            found=f"{in_features} and {out_features}",
            fix="name other widths, or write it without AWQ",
        )
    rows_of_group = {"qweight": _AWQ_GROUP, "qzeros": 1}
    for suffix, rule in AWQ_TENSORS.items():
        shape, canonical = rule.shape_for(out_features, in_features, _AWQ_GROUP), f"{linear}.{suffix}"
        (name,) = stored_names(canonical, spec)
        # Scales have no holes: one of 0 is refused where it is read.
        block = run = _CHUNK
        if suffix in rows_of_group:
            run = rows_of_group[suffix] * shape[1]
            block = _AWQ_SPARSE_GROUPS * run
        stored_dtype = dtype if suffix == "scales" else torch.int32
        yield _Part(name, canonical, shape, range(shape[0]), stored_dtype, block, run)


def _random_chunks(canonical: str, elements: int, span: range, seed: int) -> Iterator[torch.Tensor]:
    """The elements `span` of the canonical tensor, flat, float32; int32 where words hold 4-bit values."""
    for start in range(span.start - span.start % _CHUNK, span.stop, _CHUNK):
        wanted = slice(max(span.start - start, 0), span.stop - start)
        # In no variable: it would be held while the next chunk is made.
        yield _random(canonical, start, min(_CHUNK, elements - start), seed)[wanted]


def _random(canonical: str, start: int, count: int, seed: int) -> torch.Tensor:
    """`count` elements from `start` on, with a generator of their own: parts (q, k, v) are made without the rest."""
    digest = hashlib.sha256(f"{seed}:{canonical}:{start}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    if canonical.endswith((".qweight", ".qzeros")):
        words = torch.randint(-(1 << 31), 1 << 31, (count,), dtype=torch.int32, generator=generator)
        # Zero points are 7 or 8, so that weights are positive and negative alike.
        return words if canonical.endswith(".qweight") else (words & 0x11111111) + 0x77777777
    center, std = _distribution(canonical)
    return torch.randn(count, generator=generator).mul_(std).add_(center)


def _distribution(canonical: str) -> tuple[float, float]:
    """Mean and standard deviation: near one for norms, small for LayerScale, so that deep models stay sane."""
    parts = canonical.split(".")
    is_norm = canonical.endswith("norm.weight") or parts[-2] in ("norm1", "norm2") or canonical.startswith("mlp1.0.")
    if is_norm and parts[-1] == "weight":
        return 1.0, _STD
    if parts[-1] in ("ls1", "ls2"):
        return _LAYER_SCALE, _LAYER_SCALE * _STD
    if parts[-1] == "scales":
        return _AWQ_SCALE, _AWQ_SCALE / 8
    return 0.0, _STD
