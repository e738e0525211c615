"""A build within a budget: what it chooses between, what the result can take, and the search for it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, Compute
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.files import link_or_copy
from r1v_export.manifest import to_json
from r1v_export.pipeline.calibration import calibration_set, chosen_recipe, prepared_set
from r1v_export.pipeline.calibration_samples import examples_read
from r1v_export.pipeline.effort import with_effort
from r1v_export.progress import size
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.dataset import CalibrationSet
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.calibration.resume import write_text
from r1v_export.quantization.groups import linear_shapes
from r1v_export.quantization.mixed_precision.budget import Budget
from r1v_export.quantization.mixed_precision.search import FP8, MEASURED_SAMPLES, SENSITIVITY, candidates, search
from r1v_export.quantization.recipe import Recipe, Scheme, resolve
from r1v_export.quantization.sizes import checkpoint_bytes, parameter_count, tensor_bytes

_COUNTED_IN: Compute = "bfloat16"
"""What a budget of size counts what is not quantized in."""
_ROOM_FOR_SCALES = 1.2
"""Over the estimate for INT4: it counts 2 bytes a scale, of as few as 32 values, where 4 are stored."""


def calibrate_within_budget(
    config: BuildConfig, checkpoint: Checkpoint, out: Path, options: CalibrationOptions
) -> None:
    """Search for a recipe; the calibration by it and the table that it was chosen from become `out`.

    Divergences are measured on samples behind those that are calibrated on, where the data has enough of them.

    Raises:
        UsageError: the budget cannot be met, or `out` holds something.
        CapabilityError: divergences are wanted, and the model is too large for this machine to measure them.
        R1VError: as `sharded_calibration.calibrate`.
    """
    assert config.budget is not None
    assert options.resume_folder is not None
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError("The output folder is not empty.", where=out, fix="name a new one")
    require_attainable_budget(config, checkpoint)
    require_measurable_budget(config, checkpoint)
    budget, resume_folder = Budget.parse(config.budget), options.resume_folder
    found = search(
        checkpoint,
        calibration_set(config, checkpoint, None, resume_folder),
        budget,
        resume_folder,
        options,
        measured=_measured_set(config, checkpoint, resume_folder),
        recipes=budget_candidates(config, checkpoint),
        with_kl=whole_model_fits(checkpoint),
    )
    result = resume_folder / "result"
    shutil.rmtree(result, ignore_errors=True)
    shutil.copytree(found.folder, result, copy_function=link_or_copy)
    write_text(result / SENSITIVITY, to_json(found.table.model_dump(mode="json")))
    if out.is_dir():
        out.rmdir()
    out.parent.mkdir(parents=True, exist_ok=True)
    result.replace(out)


def _measured_set(config: BuildConfig, checkpoint: Checkpoint, resume_folder: Path) -> CalibrationSet | None:
    """Samples behind those that are calibrated on; None where the data has no more images."""
    count = examples_read(with_effort(config, checkpoint.spec).calibration)
    behind = read_examples(config.calibration.data, count + MEASURED_SAMPLES, config.image_policy)[count:]
    if not any(example.images for example in behind):
        return None
    return prepared_set(behind, config, checkpoint, resume_folder)


def budget_candidates(config: BuildConfig, checkpoint: Checkpoint) -> dict[str, Recipe]:
    """What a budget chooses between: FP8 as `--precision fp8` is on these targets, and the build's precision."""
    uniform = chosen_recipe(config.model_copy(update={"precision": "fp8", "budget": None}))
    schemes = [rule.scheme for rule in uniform.rules if rule.scheme] if uniform else []
    return candidates(checkpoint, config.precision, schemes[0] if schemes else FP8)


def require_attainable_budget(config: BuildConfig, checkpoint: Checkpoint) -> None:
    """Refuse a budget of size that is clearly below the model in its smallest precisions, before any search.

    Raises:
        UsageError: it is; `search` refuses one that scales alone exceed.
    """
    if config.budget is None or (budget := Budget.parse(config.budget)).kind != "size":
        return
    least_bytes = checkpoint_bytes(checkpoint.spec, _smallest_schemes(config, checkpoint), _COUNTED_IN)
    if budget.limit < least_bytes:
        raise UsageError(
            "The budget is smaller than the model in its smallest precisions.",
            where=f"--budget {config.budget}",
            expected=f"more than {size(least_bytes)}",
            found=size(int(budget.limit)),
            fix=f"give more, such as --budget size={math.ceil(_ROOM_FOR_SCALES * least_bytes / 1e6)}MB",
        )


def require_measurable_budget(config: BuildConfig, checkpoint: Checkpoint) -> None:
    """Check that what a budget limits can be measured here.

    Raises:
        CapabilityError: the memory does not hold the model whose divergence is to be measured.
    """
    if config.budget is None or Budget.parse(config.budget).kind != "kl" or whole_model_fits(checkpoint):
        return
    raise CapabilityError(
        "The model is too large for this machine to measure divergences.",
        where=f"--budget {config.budget}",
        expected=f"{size(_measuring_bytes(checkpoint))} of memory, for the whole model in float32, twice",
        found=f"{size(psutil.virtual_memory().total)} of memory",
        fix="give a budget of size, or calibrate on a larger machine and build with --calibrated",
    )


def largest_mix(config: BuildConfig, checkpoint: Checkpoint) -> Mapping[str, Scheme]:
    """The schemes of a mix that takes as much disk as a budget allows, before one is chosen: of a size, the smallest
    schemes but for what may stay in 16 bits; of a divergence none, since every linear may stay so."""
    assert config.budget is not None
    budget, spec = Budget.parse(config.budget), checkpoint.spec
    if budget.kind == "kl":
        return {}
    mix = dict(_smallest_schemes(config, checkpoint))
    room = budget.limit - checkpoint_bytes(spec, mix, _COUNTED_IN)
    for linear, (rows, columns) in linear_shapes(spec).items():
        if linear in mix:
            grown = tensor_bytes(linear, rows * columns, {}, _COUNTED_IN)
            grown -= tensor_bytes(linear, rows * columns, mix, _COUNTED_IN)
            if grown <= room:
                room -= grown
                del mix[linear]
    return mix


def _smallest_schemes(config: BuildConfig, checkpoint: Checkpoint) -> Mapping[str, Scheme]:
    """Of each linear, of those that a budget chooses between."""
    return {name: scheme for each in possible_schemes(config, checkpoint, None) for name, scheme in each.items()}


def possible_schemes(
    config: BuildConfig, checkpoint: Checkpoint, recipe: Recipe | None
) -> Sequence[Mapping[str, Scheme]]:
    """The schemes of a recipe; of a budget, which has yet to choose, those of each of its recipes.

    Args:
        config: of `resolved_calibration`.
        recipe: None where nothing is quantized, and where a budget has yet to find it.
    """
    if recipe is not None:
        return [resolve(recipe, checkpoint.spec)]
    if config.budget is None:
        return [{}]
    return [resolve(found, checkpoint.spec) for found in budget_candidates(config, checkpoint).values()]


def whole_model_fits(checkpoint: Checkpoint) -> bool:
    """Whether this machine holds the model in float32 and as much again for what is computed."""
    return _measuring_bytes(checkpoint) < psutil.virtual_memory().total


def _measuring_bytes(checkpoint: Checkpoint) -> int:
    return 2 * 4 * parameter_count(checkpoint.spec)
