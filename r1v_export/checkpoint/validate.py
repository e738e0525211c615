"""What a model needs against what the weight files hold, from headers alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from r1v_export.checkpoint.listing import shorten
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.count import Count
from r1v_export.errors import CheckpointError
from r1v_export.model_spec import ModelSpec

_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_tensors(
    spec: ModelSpec,
    wanted: Mapping[str, tuple[str, ...]],
    stored: Mapping[str, StoredTensor],
    superfluous: Collection[str],
) -> None:
    """Every tensor is there once, in its shape, in a floating-point dtype, and there is no other.

    Args:
        spec: the model.
        wanted: canonical name -> the stored names it is joined from, of all that is not quantized.
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
            fix="use the unquantized checkpoint, or cast the weights to bfloat16",
        )


def _check_shapes(spec: ModelSpec, wanted: Mapping[str, tuple[str, ...]], stored: Mapping[str, StoredTensor]) -> None:
    expected, found, files = [], [], set()
    shapes = expected_tensors(spec)
    for canonical, names in wanted.items():
        shape = shapes[canonical]
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
    return "One tensor is" if len(items) == 1 else f"{Count(len(items), 'tensor')} are"
