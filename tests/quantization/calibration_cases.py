"""Shared by the tests of calibration: small sets, folders compared byte by byte, and the chain of blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.calibration.blocks import Block, blocks, materialize
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import CalibrationSample, CalibrationSet, prepare
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.recipe import Recipe, load
from r1v_export.quantization.statistics.collector import StatisticsCollector, collect_statistics
from r1v_export.reference import language
from r1v_export.reference.model import Model

RED = {"image": "red.png", "prompt": "Which colour?", "answer": "red"}
CPU = torch.device("cpu")

KV_RECIPE = load("fp8-kv")
AWQ_RECIPE = load("int4-awq")
RTN_RECIPE = load("int4-rtn")


def small_set(checkpoint: Checkpoint, count: int = 3, **options: Any) -> CalibrationSet:
    return prepare(read_examples(None, count), checkpoint, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def calibrated(checkpoint: Checkpoint, recipe: Recipe, out: Path, count: int = 3, **options: Any) -> dict[str, bytes]:
    """The files of a calibration on the built-in set."""
    calibrate(checkpoint, recipe, small_set(checkpoint, count), out, CalibrationOptions(**options))
    return files_of(out)


def with_weights(checkpoint: Checkpoint, folder: Path, changes: Mapping[str, float]) -> Checkpoint:
    """A copy of a checkpoint in which every element of the named tensors has the given value."""
    folder.mkdir()
    for path in checkpoint.auxiliary_files():
        (folder / path.name).write_bytes(path.read_bytes())
    (weights,) = checkpoint.files()
    tensors: dict[str, Tensor] = load_file(weights)
    changed = {name: torch.full_like(tensors[name], value) for name, value in changes.items()}
    save_file(tensors | changed, folder / "model.safetensors")
    return Checkpoint.open(folder)


def write_set(folder: Path, *examples: dict[str, Any] | str) -> Path:
    """A folder with red.png, blue.png (which needs two tiles) and a JSONL file of the given lines."""
    Image.new("RGB", (112, 112), "red").save(folder / "red.png")
    Image.new("RGB", (224, 112), "blue").save(folder / "blue.png")
    lines = [example if isinstance(example, str) else json.dumps(example) for example in examples]
    (folder / "set.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def prepared(folder: Path, checkpoint: Checkpoint, **options: Any) -> CalibrationSet:
    return prepare(read_examples(folder, 100), checkpoint, **options)


def chain(checkpoint: Checkpoint, sample: CalibrationSample) -> Iterator[tuple[Block, nn.Module, Tensor | None]]:
    """Every block with its module and what comes in."""
    x: Tensor | None = None
    for block in blocks(checkpoint.spec):
        module = materialize(block, checkpoint, torch.float32, CPU)
        yield block, module, x
        x = block.forward(module, sample, x)


def collect(block: Block, module: nn.Module, with_gram: bool = False) -> AbstractContextManager[StatisticsCollector]:
    """Statistics of everything that can be collected in a block."""
    inputs = {block.module_name(group.linears[0]): group for group in block.groups}
    names = {group.name for group in block.groups} if with_gram else set[str]()
    return collect_statistics(module, inputs, names, block.collected_outputs())


def logits(model: Model, sample: CalibrationSample) -> Tensor:
    """Of every token, by the reference's own way through the whole model; with a cache, unlike the chain."""
    image_embeds = model.image_embeds(torch.from_numpy(sample.pixels()))
    ids = torch.tensor([sample.token_ids])
    embeds = model.embed(ids, image_embeds.flatten(0, 1))
    seq = ids.shape[1]
    step = language.CacheStep(torch.arange(seq)[None], torch.tensor([0]), torch.tensor([seq]))
    rotary = language.rotary_tables(model.spec.language, seq)
    cache = model.language_model.empty_cache(1, seq)
    return model.language_model(embeds, rotary, step, cache)[0]


def make_truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
