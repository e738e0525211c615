"""The search for precisions keeps its budget, and its result is a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import UsageError
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.groups import LM_HEAD_LINEAR, linear_groups
from r1v_export.quantization.mixed_precision.budget import Budget
from r1v_export.quantization.mixed_precision.search import candidates, mixed_recipe, search
from r1v_export.quantization.mixed_precision.sensitivity import FLOAT, SensitivityTable, divergence
from r1v_export.quantization.recipe import resolve
from tests.quantization.calibration_cases import small_set

SAMPLES = 1


def test_a_mix_becomes_a_recipe_that_says_the_same(synth_checkpoint: Checkpoint) -> None:
    names = [group.name for group in linear_groups(synth_checkpoint.spec) if group.name != LM_HEAD_LINEAR]
    precisions = {name: ("fp8", "int4", FLOAT)[index % 3] for index, name in enumerate(names)}
    recipes = candidates(synth_checkpoint)
    resolved = resolve(mixed_recipe(synth_checkpoint, precisions, recipes), synth_checkpoint.spec)
    for group in linear_groups(synth_checkpoint.spec):
        for linear in group.linears:
            scheme = resolved.get(linear)
            found = FLOAT if scheme is None else scheme.weights.type
            assert found == precisions.get(group.name, FLOAT)
    with pytest.raises(UsageError, match="nothing is quantized"):
        mixed_recipe(synth_checkpoint, {}, recipes)


def test_a_search_keeps_its_budget_of_divergence(
    synth_checkpoint: Checkpoint, table: SensitivityTable, tmp_path: Path
) -> None:
    limit = sum(option.kl or 0 for option in table.options if option.precision == "fp8")
    calibration = small_set(synth_checkpoint, SAMPLES)
    found = search(synth_checkpoint, calibration, Budget("kl", limit), tmp_path)
    assert found.kl is not None
    assert found.kl <= limit
    assert {"fp8", "int4"} & set(found.assignment.precisions.values())
    out = tmp_path / "again"
    calibrate(synth_checkpoint, found.recipe, calibration, out)
    assert divergence(synth_checkpoint, calibration, Artifact.open(out, synth_checkpoint)) == found.kl


def test_a_search_keeps_its_budget_of_size(
    synth_checkpoint: Checkpoint, table: SensitivityTable, tmp_path: Path
) -> None:
    limit = table.fixed_bytes + sum(o.size_bytes for o in table.options if o.precision == "fp8")
    found = search(synth_checkpoint, small_set(synth_checkpoint, SAMPLES), Budget("size", limit), tmp_path)
    assert found.assignment.size_bytes <= limit
    assert found.kl is not None
