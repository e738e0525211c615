"""Automatic mixed precision: measure every module in every precision, choose within a budget, measure the result."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.count import Count
from r1v_export.errors import BundleError, UsageError
from r1v_export.log_event import log_event
from r1v_export.manifest import to_json
from r1v_export.progress import ProgressCallback, subrange
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.artifact.documents import checkpoint_fingerprint
from r1v_export.quantization.calibration.blockwise_runner import (
    DEFAULT_OPTIONS,
    CalibrationOptions,
    compute_dtype,
)
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import CalibrationSet
from r1v_export.quantization.calibration.key import make_key
from r1v_export.quantization.calibration.resume import write_text
from r1v_export.quantization.groups import LM_HEAD_LINEAR, linear_groups, linear_shapes
from r1v_export.quantization.mixed_precision.budget import Assignment, Budget, choose
from r1v_export.quantization.mixed_precision.sensitivity import (
    FLOAT,
    Selection,
    SensitivityTable,
    divergence,
    measure,
    read_table,
)
from r1v_export.quantization.recipe import Recipe, Rule, Scheme, resolve

_LOG = logging.getLogger(__name__)

SENSITIVITY = "sensitivity.json"
"""The table's file, next to the artifact that was chosen by it."""

MEASURED_SAMPLES = 16
"""Each module in each precision sends all of them through the blocks behind it."""

FP8 = Scheme.model_validate(
    {
        "weights": {"type": "fp8", "granularity": "channel", "algorithm": "rtn"},
        "inputs": {"type": "fp8", "mode": "static"},
    }
)
INT8 = Scheme.model_validate(
    {
        "weights": {"type": "int8", "granularity": "channel", "algorithm": "rtn"},
        "inputs": {"type": "int8", "mode": "static"},
    }
)

_TRIES = 6
_MARGIN = 0.9
"""A budget that was overrun is cut to this part of what would have been right were everything proportional."""


@dataclass(frozen=True)
class SearchResult:
    """A recipe within a budget.

    Attributes:
        folder: the calibration by this recipe.
        kl: measured, of the model quantized by the recipe; None where the table has none.
    """

    recipe: Recipe
    table: SensitivityTable
    assignment: Assignment
    kl: float | None
    folder: Path


def candidates(checkpoint: Checkpoint, smallest: str = "int4", fp8: Scheme = FP8) -> dict[str, Recipe]:
    """Uniform recipes to choose between, from the largest precision down to `smallest` (fp8, int8 or int4).

    None of them moves scales between modules, so that each can be judged alone. INT4 is GPTQ in the largest groups that
    divide each linear's inputs.

    Args:
        fp8: how linears are quantized to FP8; targets differ in what scales they take.
    """
    shapes = {name: shape for name, shape in linear_shapes(checkpoint.spec).items() if name != LM_HEAD_LINEAR}
    if smallest == "int8":
        return {"int8": Recipe(name="int8", description="", rules=(Rule(modules=tuple(shapes), scheme=INT8),))}
    recipes = {"fp8": Recipe(name="fp8", description="", rules=(Rule(modules=tuple(shapes), scheme=fp8),))}
    by_group: dict[int, list[str]] = {}
    for name, (_, in_features) in shapes.items() if smallest == "int4" else ():
        if fitting := [size for size in (128, 64, 32) if in_features % size == 0]:
            by_group.setdefault(fitting[0], []).append(name)
    int4 = [
        Rule(modules=tuple(names), scheme=Scheme.model_validate({"weights": _int4(size)}))
        for size, names in by_group.items()
    ]
    return recipes | ({"int4": Recipe(name="int4", description="", rules=tuple(int4))} if int4 else {})


def _int4(group_size: int) -> dict[str, object]:
    return {"type": "int4", "granularity": "group", "group_size": group_size, "algorithm": "gptq"}


def mixed_recipe(checkpoint: Checkpoint, precisions: Mapping[str, str], recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe that gives every module its precision.

    Args:
        precisions: by group name; `FLOAT` leaves a module unchanged.
        recipes: what each precision stands for.

    Raises:
        UsageError: no module is quantized.
    """
    schemes = {precision: resolve(recipe, checkpoint.spec) for precision, recipe in recipes.items()}
    modules: dict[str, list[str]] = {}
    scheme_of: dict[str, Scheme] = {}
    for group in linear_groups(checkpoint.spec):
        precision = precisions.get(group.name, FLOAT)
        for linear in group.linears if precision != FLOAT else ():
            if scheme := schemes[precision].get(linear):
                key = scheme.model_dump_json()
                scheme_of[key] = scheme
                modules.setdefault(key, []).append(linear)
    if not modules:
        raise UsageError(
            "Within this budget nothing is quantized.",
            found="every module stays in 16 bits",
            fix="give a larger divergence or a smaller size, or build with --precision bf16",
        )
    rules = tuple(Rule(modules=tuple(names), scheme=scheme_of[key]) for key, names in modules.items())
    return Recipe(name="mixed-auto", description="Chosen module by module from measured sensitivities.", rules=rules)


def search(
    checkpoint: Checkpoint,
    calibration: CalibrationSet,
    budget: Budget,
    folder: Path,
    options: CalibrationOptions = DEFAULT_OPTIONS,
    *,
    measured: CalibrationSet | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    with_kl: bool = True,
) -> SearchResult:
    """Find a recipe within a budget, and calibrate by it.

    A budget of divergence is checked: where the model quantized by the chosen recipe diverges more than modules alone
    predict, precisions are chosen again with a smaller budget.

    Args:
        folder: for the calibrations on the way; a run after an interrupted one continues from there.
        measured: samples that divergences are measured on; those of the calibration if omitted, which flatters
            algorithms that fit weights to them (GPTQ).
        recipes: what to choose between, by precision; `candidates` if omitted.
        with_kl: see `sensitivity.measure`; without, nothing is measured but the noise of single blocks.

    Raises:
        UsageError: the budget cannot be met.
    """
    if budget.kind == "kl" and not with_kl:
        raise UsageError("A budget of divergence needs divergences.", fix="measure with kl, or give a budget of size")
    recipes, measured = recipes or candidates(checkpoint), measured or calibration
    measured = replace(measured, samples=measured.samples[:MEASURED_SAMPLES])
    folder /= _digest(checkpoint, (calibration, measured), options, recipes, with_kl)
    steps = len(recipes) + 3  # Measuring counts as two.
    parts = [subrange(options.on_progress, index / steps, (index + 1) / steps) for index in range(len(recipes))]
    measuring = subrange(options.on_progress, len(recipes) / steps, (len(recipes) + 2) / steps)
    mixing = subrange(options.on_progress, (steps - 1) / steps, 1.0)
    artifacts = {}
    for (precision, recipe), part in zip(recipes.items(), parts, strict=True):
        calibrate(checkpoint, recipe, calibration, folder / precision, _with_progress(options, part))
        artifacts[precision] = Artifact.open(folder / precision, checkpoint)
    table = _table(checkpoint, measured, artifacts, folder / SENSITIVITY, with_kl, measuring)
    limit = budget.limit
    for attempt in range(_TRIES):
        assignment = choose(table, Budget(budget.kind, limit))
        recipe = mixed_recipe(checkpoint, assignment.precisions, recipes)
        out = folder / f"mixed-{attempt}"
        calibrate(checkpoint, recipe, calibration, out, _with_progress(options, mixing))
        kl = divergence(checkpoint, measured, Artifact.open(out, checkpoint)) if with_kl else None
        counts = Counter(assignment.precisions.values())
        log_event(
            _LOG,
            logging.INFO,
            "mix %(attempt)d of at most %(limit)g: %(precisions)s; %(size_bytes)s, divergence %(kl)s",
            attempt=attempt + 1,
            limit=limit,
            precisions=", ".join(
                f"{Count(count, 'module')} {precision}" for precision, count in sorted(counts.items())
            ),
            size_bytes=Count(assignment.size_bytes, "byte"),
            kl="not measured" if kl is None else round(kl, 6),
        )
        if budget.kind == "size" or kl is None or kl <= budget.limit:
            selection = Selection(
                budget=str(budget), precisions=assignment.precisions, size_bytes=assignment.size_bytes, kl=kl
            )
            return SearchResult(recipe, table.model_copy(update={"selection": selection}), assignment, kl, out)
        limit = _MARGIN * min(limit, assignment.loss) * budget.limit / kl
    raise UsageError(
        "No mix of precisions stays within this divergence.",
        expected=f"kl of {budget.limit:g}",
        found=f"kl of {kl:.4g}",
        fix="give a larger budget",
    )


def _table(
    checkpoint: Checkpoint,
    calibration: CalibrationSet,
    artifacts: Mapping[str, Artifact],
    path: Path,
    with_kl: bool,
    on_progress: ProgressCallback,
) -> SensitivityTable:
    """The table, from its file where an earlier run got as far."""
    try:
        return read_table(path)
    except BundleError:
        table = measure(checkpoint, calibration, artifacts, with_kl=with_kl, on_progress=on_progress)
        write_text(path, to_json(table.model_dump(mode="json")))
        return table


def _digest(
    checkpoint: Checkpoint,
    sets: Sequence[CalibrationSet],
    options: CalibrationOptions,
    recipes: Mapping[str, Recipe],
    with_kl: bool,
) -> str:
    """Distinguishes searches of different models, samples and recipes, whose intermediate results cannot be mixed."""
    origin, compute = checkpoint_fingerprint(checkpoint), compute_dtype(checkpoint, options.device)
    plans = [
        make_key(origin, recipe, compute, options.matmul, samples).fingerprint
        for recipe in recipes.values()
        for samples in sets
    ]
    return hashlib.sha256(to_json([*plans, with_kl]).encode()).hexdigest()[:16]


def _with_progress(options: CalibrationOptions, on_progress: ProgressCallback) -> CalibrationOptions:
    return replace(options, resume_folder=None, on_progress=on_progress)
