"""Quantised checkpoints become calibration artefacts: the same codes, the same scales, the same function."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.errors import CheckpointError, UsageError
from r1v_export.quantization.artefact import Artefact
from r1v_export.quantization.calibrate import make_schedule
from r1v_export.quantization.imported import import_quantised, imported_recipe
from r1v_export.quantization.recipe import parse
from tests.quantised_checkpoints import AWQ, GPTQ, pack_awq, pack_gptq, quantised_copy, set_quantization

LAYER = "language_model.model.layers.0"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    return synthesize(folder, preset="nano", vision_layers=1, language_layers=2)


def imported(folder: Path, out: Path) -> Artefact:
    checkpoint = Checkpoint.open(folder)
    import_quantised(checkpoint, out)
    return Artefact.open(out, checkpoint)


@pytest.mark.parametrize(("pack", "config"), [(pack_awq, AWQ), (pack_gptq, GPTQ)])
def test_the_artefact_holds_the_checkpoints_own_codes(source, tmp_path, pack, config):
    truth = quantised_copy(source, tmp_path / "model", pack, config)
    artefact = imported(tmp_path / "model", tmp_path / "out")
    assert set(artefact.schemes) == set(truth)
    assert not artefact.overrides
    for name, (codes, scale, zero) in truth.items():
        linear = artefact.linear(name)
        assert torch.equal(linear.codes, codes.to(torch.int8))
        assert torch.equal(linear.scale, scale.float())
        assert torch.equal(linear.zero_point, zero.to(torch.int8))
        assert torch.equal(linear.dequantize(), Checkpoint.open(tmp_path / "model").read(f"{name}.weight"))


def test_a_symmetric_gptq_checkpoint_is_int4(source, tmp_path):
    quantised_copy(source, tmp_path / "model", pack_gptq, GPTQ | {"sym": True}, symmetric=True)
    schemes = imported(tmp_path / "model", tmp_path / "out").schemes
    assert {(scheme.weights.type, scheme.inputs) for scheme in schemes.values()} == {("int4", None)}


def test_an_import_that_was_stopped_goes_on_and_ends_in_the_same_bytes(source, tmp_path, monkeypatch):
    quantised_copy(source, tmp_path / "model", pack_awq, AWQ)
    imported(tmp_path / "model", tmp_path / "whole")
    checkpoint, seen = Checkpoint.open(tmp_path / "model"), []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_quantised(checkpoint, tmp_path / "out", on_progress=stop)
    import_quantised(checkpoint, tmp_path / "out")
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in tmp_path.glob("[wo]*")]
    assert len(files) == 2
    assert files[0] == files[1]


def test_its_recipe_cannot_be_calibrated_by(source, tmp_path):
    quantised_copy(source, tmp_path / "model", pack_awq, AWQ)
    recipe = imported_recipe(Checkpoint.open(tmp_path / "model").quantised)
    assert parse(recipe.to_yaml()) == recipe
    with pytest.raises(UsageError, match="came quantised"):
        make_schedule(Checkpoint.open(source), recipe)


def test_groups_that_no_target_takes_are_refused(source, tmp_path):
    quantised_copy(source, tmp_path / "model", pack_awq, AWQ)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    for name in [name for name in tensors if name.endswith((".scales", ".qzeros"))]:
        tensors[name] = tensors[name].repeat_interleave(2, 0)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    set_quantization(tmp_path / "model", AWQ | {"group_size": 16})
    with pytest.raises(CheckpointError, match="groups of 32, 64, 128 inputs"):
        imported_recipe(Checkpoint.open(tmp_path / "model").quantised)


def test_nan_in_a_scale_stops_the_import_and_names_the_linear(source, tmp_path):
    quantised_copy(source, tmp_path / "model", pack_awq, AWQ)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors[f"{LAYER}.mlp.up_proj.scales"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj"):
        imported(tmp_path / "model", tmp_path / "out")
    shutil.rmtree(tmp_path / "model")
