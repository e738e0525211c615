"""Sensitivity of modules: against the whole reference model with that module quantized, and put to use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import BundleError, UsageError
from r1v_export.manifest import to_json
from r1v_export.quantization.apply import torch as fake
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.groups import LM_HEAD_LINEAR, linear_groups
from r1v_export.quantization.mixed_precision.sensitivity import FLOAT, SensitivityTable, divergence, measure, read_table
from r1v_export.quantization.recipe import load as load_recipe
from r1v_export.reference.model import load
from tests.quantization.calibration_cases import logits, small_set

SAMPLES = 1


def reference_kl(checkpoint: Checkpoint, artifact: Artifact, linears: tuple[str, ...]) -> float:
    """Mean KL over the tokens behind the image, from two whole reference models."""
    clean, noisy = load(checkpoint), load(checkpoint)
    fake.apply(noisy, {name: artifact.linear(name) for name in linears}, {})
    divergences = []
    for sample in small_set(checkpoint, SAMPLES).samples:
        after = len(sample.token_ids) - sample.token_ids[::-1].index(checkpoint.spec.image_token_id)
        p, q = (F.log_softmax(logits(model, sample)[0, after:].double(), -1) for model in (clean, noisy))
        divergences.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(divergences).mean())


@pytest.mark.parametrize(
    "module", ["vision_model.encoder.layers.0.mlp.fc1", "language_model.model.layers.1.self_attn.q_proj"]
)
def test_a_modules_divergence_is_that_of_the_whole_model_with_it_quantized(
    synth_checkpoint: Checkpoint, artifacts: dict[str, Artifact], table: SensitivityTable, module: str
) -> None:
    (group,) = (group for group in linear_groups(synth_checkpoint.spec) if group.name == module)
    for option in table.options:
        if option.module == module and option.precision != FLOAT:
            expected = reference_kl(synth_checkpoint, artifacts[option.precision], group.linears)
            assert option.kl == pytest.approx(expected, rel=1e-3)


def test_every_module_has_every_precision_and_none(synth_checkpoint: Checkpoint, table: SensitivityTable) -> None:
    expected = [group.name for group in linear_groups(synth_checkpoint.spec) if group.name != LM_HEAD_LINEAR]
    for precision in (FLOAT, "fp8", "int4"):
        assert [option.module for option in table.options if option.precision == precision] == expected


def test_fewer_bits_are_smaller_and_every_rounding_costs(table: SensitivityTable) -> None:
    by_precision = {p: [o for o in table.options if o.precision == p] for p in (FLOAT, "fp8", "int4")}
    for whole, eight, four in zip(*by_precision.values(), strict=True):
        assert whole.size_bytes > 1.9 * eight.size_bytes > 3.4 * four.size_bytes
        assert whole.snr_db > max(eight.snr_db, four.snr_db)
        assert eight.kl is not None
        assert four.kl is not None
        assert whole.kl == 0 < min(eight.kl, four.kl)


def test_sizes_add_up_to_the_checkpoint(synth_checkpoint: Checkpoint, table: SensitivityTable) -> None:
    whole = table.fixed_bytes + sum(option.size_bytes for option in table.options if option.precision == FLOAT)
    assert whole == sum(info.nbytes for info in synth_checkpoint.tensors.values())


def test_without_divergences_one_block_at_a_time_gives_the_same_noise(
    synth_checkpoint: Checkpoint, artifacts: dict[str, Artifact], table: SensitivityTable
) -> None:
    local = measure(synth_checkpoint, small_set(synth_checkpoint, SAMPLES), artifacts, with_kl=False)
    assert [(o.module, o.precision, o.snr_db) for o in local.options] == [
        (o.module, o.precision, o.snr_db) for o in table.options
    ]
    assert all(option.kl is None for option in local.options)


def test_modules_that_share_scales_cannot_be_measured_alone(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibration = small_set(synth_checkpoint, 1)
    calibrate(synth_checkpoint, load_recipe("int4-awq"), calibration, tmp_path / "awq")
    with pytest.raises(UsageError, match="cannot be quantized alone"):
        measure(synth_checkpoint, calibration, {"int4": Artifact.open(tmp_path / "awq", synth_checkpoint)})


def test_the_whole_models_divergence_counts_rewritten_tensors(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibration = small_set(synth_checkpoint, 1)
    calibrate(synth_checkpoint, load_recipe("int8-smoothquant"), calibration, tmp_path / "sq")
    artifact = Artifact.open(tmp_path / "sq", synth_checkpoint)
    found = divergence(synth_checkpoint, calibration, artifact)
    model, exact = load(synth_checkpoint), load(synth_checkpoint)
    fake.apply(model, dict(artifact.linears()), {name: read() for name, read in artifact.overrides.items()})
    (sample,) = calibration.samples
    after = len(sample.token_ids) - sample.token_ids[::-1].index(synth_checkpoint.spec.image_token_id)
    p, q = (F.log_softmax(logits(m, sample)[0, after:].double(), -1) for m in (exact, model))
    assert found == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)


def test_a_table_survives_its_file_and_a_damaged_one_is_refused(table: SensitivityTable, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    path.write_text(to_json(table.model_dump(mode="json")))
    assert read_table(path) == table
    path.write_text("{}")
    with pytest.raises(BundleError, match="sensitivity"):
        read_table(path)
