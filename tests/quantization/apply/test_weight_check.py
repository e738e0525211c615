"""Artifacts compared with the weights that they were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import ParityError
from r1v_export.quantization.apply.weight_check import require_own_scales
from r1v_export.quantization.artifact.artifact import SCALES, Artifact
from r1v_export.quantization.recipe import load as load_recipe
from r1v_export.reference.model import Model, load
from tests.quantization.calibration_cases import calibrated

LINEAR = "language_model.model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def model(synth_checkpoint: Checkpoint) -> Model:
    return load(synth_checkpoint)


@pytest.mark.parametrize("recipe", ["fp8-kv", "fp8-tensor", "int4-rtn", "int4-gptq", "int8-smoothquant", "w4a8"])
def test_what_calibration_wrote_passes(synth_checkpoint: Checkpoint, model: Model, tmp_path: Path, recipe: str) -> None:
    calibrated(synth_checkpoint, load_recipe(recipe), tmp_path / "out", 1)
    require_own_scales(model, Artifact.open(tmp_path / "out", synth_checkpoint))


def reversed_(scale: Tensor) -> Tensor:
    return scale.flip(0)


def one_sixteen_times(scale: Tensor) -> Tensor:
    return scale.clone().index_fill_(0, scale.new_tensor([3]).long(), float(scale[3] * 16))


def doubled(scale: Tensor) -> Tensor:
    return scale * 2


@pytest.mark.parametrize(
    ("kind", "change", "complaint"),
    [
        ("weight_scale", reversed_, "original's quantized values"),
        ("weight_scale", one_sixteen_times, "1 row of others"),
        ("input_scale", doubled, "an input scale of"),
    ],
)
def test_a_scale_that_is_mixed_up_or_corrupted_is_reported_with_its_linear(
    synth_checkpoint: Checkpoint,
    model: Model,
    tmp_path: Path,
    kind: str,
    change: Callable[[Tensor], Tensor],
    complaint: str,
) -> None:
    out = tmp_path / "out"
    calibrated(synth_checkpoint, load_recipe("fp8"), out, 1)
    scales = load_file(out / SCALES)
    scales[f"{LINEAR}.{kind}"] = change(scales[f"{LINEAR}.{kind}"]).contiguous()
    save_file(scales, out / SCALES)
    with pytest.raises(ParityError, match=LINEAR) as caught:
        require_own_scales(model, Artifact.open(out, synth_checkpoint))
    assert complaint in str(caught.value)
