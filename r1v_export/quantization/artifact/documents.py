"""What a calibration says of itself, `stats.json` and `recipe.yaml`, and of which checkpoint it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.tensor_file import StoredTensor, read_header
from r1v_export.errors import BundleError, CheckpointError, R1VError
from r1v_export.files import read_regular_text
from r1v_export.quantization.calibration_stats import Stats
from r1v_export.quantization.recipe import Recipe, parse
from r1v_export.strict import parse_json

STATS, RECIPE = "stats.json", "recipe.yaml"
AGAIN = "calibrate again: r1v-export build --force"
"""What to do about a calibration that cannot be used."""

_SAMPLED_BYTES = 1 << 16


def checkpoint_fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 of every tensor's name, dtype, shape and first 64 KiB: distinguishes models without reading whole
    tensors."""
    digest = hashlib.sha256()

    def add(name: str, dtype: torch.dtype, shape: tuple[int, ...], start: bytes) -> None:
        digest.update(f"{name} {dtype} {shape}\n".encode() + start)

    quantized = checkpoint.quantized
    weights = {f"{linear}.weight" for linear in quantized.linears} if quantized else set[str]()
    for name, info in sorted(checkpoint.tensors.items()):
        if name not in weights:
            add(name, info.dtype, info.shape, checkpoint.read_start(name, _SAMPLED_BYTES))
    for name, stored in sorted(quantized.stored.items()) if quantized else ():
        add(name, stored.dtype, stored.shape, stored.read_start(_SAMPLED_BYTES))
    return digest.hexdigest()


def require_origin(folder: Path, checkpoint: Checkpoint) -> Stats:
    """Read the stats of a calibration, which must be of this checkpoint.

    Raises:
        BundleError: missing, damaged, of another version, or of another checkpoint.
    """
    stats, found = read_stats(folder), checkpoint_fingerprint(checkpoint)
    if stats.checkpoint != found:
        raise BundleError(
            "This is the calibration of another checkpoint.",
            where=folder / STATS,
            expected=f"checkpoint {found[:12]}",
            found=f"checkpoint {stats.checkpoint[:12]}",
            fix=AGAIN,
        )
    return stats


def read_stats(folder: Path) -> Stats:
    """Read `stats.json`.

    Raises:
        BundleError: missing, damaged, or of another version.
    """
    path = folder / STATS
    what = "The calibration's stats.json is invalid"
    return parse_json(Stats, _read_text(path), BundleError, what, where=path, fix=AGAIN)


def read_recipe(folder: Path) -> Recipe:
    """Read `recipe.yaml`.

    Raises:
        BundleError: missing or damaged.
    """
    path = folder / RECIPE
    try:
        return parse(_read_text(path), path)
    except R1VError as error:
        raise _as_bundle_error(error) from error


def _read_text(path: Path) -> str:
    try:
        return read_regular_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            "A file of the calibration cannot be read.", where=path, found=_cause(error), fix=AGAIN
        ) from error


def _cause(error: OSError | UnicodeDecodeError) -> object:
    return error.strerror if isinstance(error, OSError) and error.strerror else error


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one of its `.safetensors` files, by name; no value is read.

    Raises:
        BundleError: missing or damaged.
    """
    try:
        return read_header(path)
    except CheckpointError as error:
        raise _as_bundle_error(error) from error


def _as_bundle_error(error: R1VError) -> BundleError:
    return BundleError(error.what, where=error.where, expected=error.expected, found=error.found, fix=AGAIN)
