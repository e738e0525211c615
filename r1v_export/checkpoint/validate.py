"""What a model needs against what the weight files hold, from headers alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from r1v_export.checkpoint.config_section import read_json_object
from r1v_export.checkpoint.listing import shorten
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.checkpoint.spec import ModelSpec
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.errors import CheckpointError

_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_QUANTISED_SUFFIXES = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv")


def refuse_quantised(folder: Path, tensors: Collection[str]) -> None:
    """Raise CheckpointError for a checkpoint whose linears are packed or scaled; decided by tensors, not by config."""
    quantised = sorted(name for name in tensors if name.endswith(_QUANTISED_SUFFIXES))
    if quantised:
        raise CheckpointError(
            "Quantised checkpoints are not yet supported as input.",
            where=folder,
            expected="float32, float16 or bfloat16 weights",
            found=f"{_quantisation_method(folder)}: {shorten(quantised)}",
            fix="use the checkpoint it was quantised from, and quantise with `r1v-export build --precision`",
        )


def _quantisation_method(folder: Path) -> str:
    config = read_json_object(folder / "config.json")
    for part in (config, config.get("llm_config"), config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("quantization_config"), dict):
            return str(part["quantization_config"].get("quant_method"))
    return "quantised tensors"


def check_tensors(
    spec: ModelSpec,
    wanted: Mapping[str, tuple[str, ...]],
    stored: Mapping[str, StoredTensor],
    superfluous: Collection[str],
) -> None:
    """Every tensor is there once, in its shape, in a floating-point dtype, and there is no other.

    Args:
        spec: the model.
        wanted: canonical name -> the stored names it is joined from.
        stored: what the files hold.
        superfluous: stored names that nothing in the model takes.

    Raises:
        CheckpointError: with all problems of the first kind that there is.
    """
    missing = sorted({name for names in wanted.values() for name in names if name not in stored})
    if missing:
        raise CheckpointError(
            f"{_count(missing)} missing.",
            where="the weight files",
            expected=shorten(missing),
            found=f"instead, unknown to the model: {shorten(sorted(superfluous))}" if superfluous else None,
            fix="download or copy the checkpoint again, or check config.json: its sizes decide what is expected",
        )
    if superfluous:
        raise CheckpointError(
            f"{_count(superfluous)} not part of the model.",
            where=shorten(sorted({stored[name].file.name for name in superfluous})),
            found=shorten(sorted(superfluous)),
            fix="check config.json: its number of layers or its options may not be this checkpoint's",
        )
    _check_shapes(spec, wanted, stored)
    wrong = [stored[name] for names in wanted.values() for name in names if stored[name].dtype not in _WEIGHT_DTYPES]
    if wrong:
        raise CheckpointError(
            f"{_count(wrong)} of an unsupported dtype.",
            where=shorten(sorted({tensor.file.name for tensor in wrong})),
            expected="float32, float16 or bfloat16",
            found=shorten([f"{tensor.name}: {str(tensor.dtype).removeprefix('torch.')}" for tensor in wrong]),
            fix="use the unquantised checkpoint, or cast the weights to bfloat16",
        )


def _check_shapes(spec: ModelSpec, wanted: Mapping[str, tuple[str, ...]], stored: Mapping[str, StoredTensor]) -> None:
    expected, found, files = [], [], set()
    for canonical, shape in expected_tensors(spec).items():
        names = wanted[canonical]
        part_shape = (shape[0] // len(names), *shape[1:])
        for name in names:
            if stored[name].shape != part_shape:
                expected.append(f"{name} {list(part_shape)}")
                found.append(f"{name} {list(stored[name].shape)}")
                files.add(stored[name].file.name)
    if expected:
        raise CheckpointError(
            f"{_count(expected)} of the wrong shape.",
            where=shorten(sorted(files)),
            expected=shorten(expected),
            found=shorten(found),
            fix="check config.json: its sizes may not be this checkpoint's",
        )


def _count(items: Collection[object]) -> str:
    return "One tensor is" if len(items) == 1 else f"{len(items)} tensors are"
