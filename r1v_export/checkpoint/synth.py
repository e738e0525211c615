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
from functools import partial
from pathlib import Path
from typing import Any

import torch

from r1v_export.checkpoint.config import Configuration, DType, Layout, read_configuration
from r1v_export.checkpoint.hub_files import CONFIG, write_configuration_code
from r1v_export.checkpoint.names import expected_tensors, stored_names
from r1v_export.checkpoint.presets import PRESETS
from r1v_export.checkpoint.synth_files import write_auxiliary_files, write_native_files
from r1v_export.checkpoint.tensor_writer import NewTensor, write_tensors
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.files import fill_folder
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback, ignore_progress

_CHUNK = 1 << 24  # elements made at a time
_STD = 0.02
_LAYER_SCALE = 0.1


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
    sparse: bool = False,
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
        sparse: files of the true size whose data are holes: all weights zero, no disk taken.
        seed: another seed, other weights.
        on_progress: called with the bytes written so far and in all.

    Returns:
        The folder.

    Raises:
        UsageError: an unknown preset, or a folder that holds something.
        CheckpointError: overrides that make no model.
        CapabilityError: not enough disk.
    """
    folder = Path(folder)
    config = _resolve_config(preset, vision_layers, language_layers, overrides or {}, dtype)
    with tempfile.TemporaryDirectory() as scratch:
        _write_and_read(Path(scratch), config, preset, layout)  # refuses overrides that make no model
    with fill_folder(folder, last=CONFIG) as unfinished:
        configuration = _write_and_read(unfinished, config, preset, layout)
        spec, unused_layers = configuration.spec, configuration.unused_vision_layers
        all_layers = spec.vision.model_copy(update={"num_layers": spec.vision.num_layers + len(unused_layers)})
        tensors = _new_tensors(spec.model_copy(update={"vision": all_layers}), getattr(torch, dtype), seed)
        total = sum(tensor.nbytes for tensor in tensors)
        if not sparse:
            _check_disk(folder, total)
        for done in write_tensors(unfinished, tensors, shards=shards, sparse=sparse):
            on_progress(done, total)
    return folder


def _resolve_config(
    preset: str,
    vision_layers: int | None,
    language_layers: int | None,
    overrides: Mapping[str, Any],
    dtype: DType,
) -> dict[str, Any]:
    if preset not in PRESETS:
        raise UsageError("There is no such preset.", expected=", ".join(PRESETS), found=preset, fix="name one of these")
    config = PRESETS[preset].config() | {"torch_dtype": dtype}
    layers = {"vision_config.num_hidden_layers": vision_layers, "llm_config.num_hidden_layers": language_layers}
    for key, value in [(key, value) for key, value in layers.items() if value is not None] + list(overrides.items()):
        *parents, last = key.split(".")
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise UsageError("A setting names a part of something that has no parts.", found=key)
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


def _new_tensors(spec: ModelSpec, dtype: torch.dtype, seed: int) -> list[NewTensor]:
    tensors: dict[str, NewTensor] = {}
    for canonical, shape in expected_tensors(spec).items():
        names = stored_names(canonical, spec)
        part_shape = (shape[0] // len(names), *shape[1:])
        elements, part_elements = math.prod(shape), math.prod(part_shape)
        for part, name in enumerate(names):
            begin = part * part_elements
            chunks = partial(_random_chunks, canonical, elements, begin, begin + part_elements, seed)
            tensors.setdefault(name, NewTensor(name, dtype, part_shape, chunks))
    return list(tensors.values())


def _random_chunks(canonical: str, elements: int, begin: int, end: int, seed: int) -> Iterator[torch.Tensor]:
    """Elements `begin` to `end` of the canonical tensor, flat, float32.

    Every chunk has a generator of its own, so that parts of a tensor (q, k, v) can be made without the rest.
    """
    center, std = _distribution(canonical)
    for start in range(begin - begin % _CHUNK, end, _CHUNK):
        digest = hashlib.sha256(f"{seed}:{canonical}:{start}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        wanted = slice(max(begin - start, 0), end - start)
        # In no variable: it would be held while the next chunk is made.
        yield torch.randn(min(_CHUNK, elements - start), generator=generator).mul_(std).add_(center)[wanted]


def _distribution(canonical: str) -> tuple[float, float]:
    """Mean and standard deviation: near one for norms, small for LayerScale, so that deep models stay sane."""
    parts = canonical.split(".")
    is_norm = canonical.endswith("norm.weight") or parts[-2] in ("norm1", "norm2") or canonical.startswith("mlp1.0.")
    if is_norm and parts[-1] == "weight":
        return 1.0, _STD
    if parts[-1] in ("ls1", "ls2"):
        return _LAYER_SCALE, _LAYER_SCALE * _STD
    return 0.0, _STD
