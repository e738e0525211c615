"""The precision of a build whose recipe or finished calibration implies it."""

from __future__ import annotations

from pathlib import Path

from r1v_export.config import BuildConfig, Precision
from r1v_export.errors import UsageError
from r1v_export.pipeline.calibration import given_calibration
from r1v_export.quantization.artifact.documents import read_recipe
from r1v_export.quantization.recipe import Recipe, load

_OTHER_RECIPE = "choose another recipe: r1v-export recipes list"
_OTHER_CALIBRATION = "calibrate in this one: r1v-export calibrate --precision PRECISION -o FOLDER"


def with_precision(config: BuildConfig) -> BuildConfig:
    """The config with the precision of its recipe or finished calibration: the fewest bits that any weight has.

    Without either, the config as it is.

    Raises:
        UsageError: another precision was asked for, or there is no such recipe.
        BundleError: the finished calibration cannot be read.
    """
    artifact = config.calibration.artifact
    if config.recipe is not None:
        recipe, where, other = load(config.recipe), f"--recipe {config.recipe}", _OTHER_RECIPE
    elif artifact is not None:
        with given_calibration(Path(artifact)):
            recipe, where, other = read_recipe(Path(artifact)), f"--calibrated {artifact}", _OTHER_CALIBRATION
    else:
        return config
    if "precision" in config.model_fields_set:
        require_precision(config.precision, recipe, where, other)
    return config.model_copy(update={"precision": recipe.precision})


def require_precision(asked: Precision, recipe: Recipe, where: str, other: str = _OTHER_RECIPE) -> None:
    """Refuse another precision than a recipe's.

    Args:
        where: what names the recipe.
        other: how to have the precision.

    Raises:
        UsageError: another precision than the recipe's was asked for.
    """
    if asked != recipe.precision:
        raise UsageError(
            "The recipe is of another precision.",
            where=where,
            expected=f"{recipe.precision}, of the fewest bits that the recipe {recipe.name} gives a weight",
            found=f"precision {asked}",
            fix=f"omit the precision, which the recipe implies, or {other}",
        )
