"""Automatic mixed precision: every module measured in every precision, a choice within a budget, held to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import UsageError
from r1v_export.quantization.artefact import Artefact
from r1v_export.quantization.budget import Budget, Choice, choose
from r1v_export.quantization.calibrate import calibrate
from r1v_export.quantization.dataset import CalibrationSet
from r1v_export.quantization.recipe import Recipe, Rule, Scheme, resolve
from r1v_export.quantization.sensitivity import FLOAT, SensitivityTable, divergence, measure
from r1v_export.quantization.sites import LM_HEAD_LINEAR, linear_shapes, sites
from r1v_export.quantization.stream import Execution

_TRIES = 6
_MARGIN = 0.9
"""A budget that was overrun is cut to this part of what would have been right were everything proportional."""


@dataclass(frozen=True)
class Found:
    """A recipe within a budget.

    Attributes:
        kl: measured, of the model quantised by the recipe; None where the table has none.
    """

    recipe: Recipe
    table: SensitivityTable
    choice: Choice
    kl: float | None


def candidates(checkpoint: Checkpoint) -> dict[str, Recipe]:
    """Uniform recipes to choose between: FP8, and INT4 in the largest groups that divide each linear's inputs.

    Both round to nearest, so that each module can be judged alone.
    """
    spec = checkpoint.spec
    shapes = {name: shape for name, shape in linear_shapes(spec).items() if name != LM_HEAD_LINEAR}
    fp8 = Scheme.model_validate(
        {
            "weights": {"type": "fp8", "granularity": "channel", "algorithm": "rtn"},
            "inputs": {"type": "fp8", "mode": "static"},
        }
    )
    by_group: dict[int, list[str]] = {}
    for name, (_, in_features) in shapes.items():
        if fitting := [size for size in (128, 64, 32) if in_features % size == 0]:
            by_group.setdefault(fitting[0], []).append(name)
    int4 = [
        Rule(modules=tuple(names), scheme=Scheme.model_validate({"weights": _int4(size)}))
        for size, names in by_group.items()
    ]
    recipes = {"fp8": Recipe(name="fp8", description="", rules=(Rule(modules=tuple(shapes), scheme=fp8),))}
    return recipes | ({"int4": Recipe(name="int4", description="", rules=tuple(int4))} if int4 else {})


def _int4(group_size: int) -> dict[str, object]:
    return {"type": "int4", "granularity": "group", "group_size": group_size, "algorithm": "rtn", "clip": True}


def mixed_recipe(checkpoint: Checkpoint, precisions: Mapping[str, str], recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe that gives every module its precision.

    Args:
        precisions: by site name; `FLOAT` leaves a module as it is.
        recipes: what each precision stands for.
    """
    schemes = {precision: resolve(recipe, checkpoint.spec) for precision, recipe in recipes.items()}
    modules: dict[str, list[str]] = {}
    scheme_of: dict[str, Scheme] = {}
    for site in sites(checkpoint.spec):
        precision = precisions.get(site.name, FLOAT)
        for linear in site.linears if precision != FLOAT else ():
            if scheme := schemes[precision].get(linear):
                key = scheme.model_dump_json()
                scheme_of[key] = scheme
                modules.setdefault(key, []).append(linear)
    if not modules:
        raise UsageError(
            "Nothing can be quantised within this budget.",
            found="every module stays in 16 bits",
            fix="give a larger budget, or build with --precision bf16",
        )
    rules = tuple(Rule(modules=tuple(names), scheme=scheme_of[key]) for key, names in modules.items())
    return Recipe(name="mixed-auto", description="Chosen module by module from measured sensitivities.", rules=rules)


def search(
    checkpoint: Checkpoint,
    calibration: CalibrationSet,
    budget: Budget,
    folder: Path,
    *,
    recipes: Mapping[str, Recipe] | None = None,
    with_kl: bool = True,
    on_progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> Found:
    """Find a recipe within a budget.

    A budget of divergence is held to: where the model quantised by the chosen recipe diverges more than modules alone
    let expect, the choice is made again with a smaller budget.

    Args:
        folder: for the calibrations on the way; a run that follows a stopped one goes on from what is there.
        recipes: what to choose between, by precision; `candidates` where left out.
        with_kl: see `sensitivity.measure`; without, nothing is measured but the table.
        on_progress: told the step, how much of it is done and how much there is.

    Raises:
        UsageError: the budget cannot be met.
    """
    if budget.kind == "kl" and not with_kl:
        raise UsageError("A budget of divergence needs divergences.", fix="measure with kl, or give a budget of size")
    recipes = recipes or candidates(checkpoint)
    artefacts = {}
    for precision, recipe in recipes.items():
        out = folder / precision
        calibrate(checkpoint, recipe, calibration, out, Execution(on_progress=partial(on_progress, precision)))
        artefacts[precision] = Artefact.open(out, checkpoint)
    table = measure(
        checkpoint, calibration, artefacts, with_kl=with_kl, on_progress=lambda d, t: on_progress("sensitivity", d, t)
    )
    limit = budget.limit
    for attempt in range(_TRIES):
        choice = choose(table, Budget(budget.kind, limit))
        recipe = mixed_recipe(checkpoint, choice.precisions, recipes)
        if not with_kl:
            return Found(recipe, table, choice, None)
        out = folder / f"mixed-{attempt}"
        calibrate(checkpoint, recipe, calibration, out)
        kl = divergence(checkpoint, calibration, Artefact.open(out, checkpoint))
        if budget.kind == "size" or kl <= budget.limit:
            return Found(recipe, table, choice, kl)
        limit = _MARGIN * min(limit, choice.loss) * budget.limit / kl
    raise UsageError(
        "No mix of precisions stays within this divergence.", expected=f"kl of {budget.limit}", found=f"kl of {kl:.4g}"
    )
