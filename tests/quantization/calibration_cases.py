"""What the tests of calibration share: a small set, and folders compared byte by byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import CalibrationSet, prepare
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.recipe import Recipe, load

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
