"""The calibration artifact: what is written is what is read, and nothing damaged is ever read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.quantized.int4_packing import pack_pairs
from r1v_export.errors import BundleError, CheckpointError
from r1v_export.quantization.algorithms.rtn import round_to_nearest
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.artifact.block_tensors import qweight_tensors
from r1v_export.quantization.artifact.documents import checkpoint_fingerprint
from r1v_export.quantization.calibration.plan import CalibrationPlan
from r1v_export.quantization.kv_scales import KVScales
from r1v_export.quantization.quantized_block import QuantizedBlock
from r1v_export.quantization.recipe import Recipe, load, names, parse
from tests.quantization.calibration_cases import calibrated, files_of, with_weights

LAYER = "language_model.model.layers.1"
LINEAR = f"{LAYER}.mlp.up_proj"
MIXED = """
name: mixed
description: AWQ after a linear that is rounded to nearest.
rules:
  - {modules: "*.down_proj", scheme: {weights: {type: int4, granularity: group, group_size: 64, algorithm: awq}}}
  - {modules: ["*.gate_proj", "*.up_proj"], scheme: {weights: {type: fp8, granularity: channel, algorithm: rtn}}}
"""
INT8_GPTQ = parse(
    load("int8-kv")
    .to_yaml()
    .replace("algorithm: smoothquant", "algorithm: gptq")
    .replace("alpha: 0.5", "damping: 0.01"),
    "int8-gptq",
)
"""Its quantized values are stored, and it has every kind of scale but those of smoothing."""
UINT4 = parse(load("int4-rtn").to_yaml().replace("type: int4", "type: uint4"), "uint4")


@pytest.fixture(scope="module")
def int8(synth_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return calibrated(synth_checkpoint, INT8_GPTQ, tmp_path_factory.mktemp("int8") / "out", 1)


@pytest.fixture
def folder(tmp_path: Path, int8: dict[str, bytes]) -> Path:
    """A sound artifact with every kind of tensor, to be damaged."""
    for name, content in int8.items():
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_bytes(content)
    return tmp_path / "a"


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_gives_an_artifact_that_is_read(
    synth_checkpoint: Checkpoint, tmp_path: Path, name: str
) -> None:
    calibrated(synth_checkpoint, load(name), tmp_path / "out", 1)
    artifact = Artifact.open(tmp_path / "out", synth_checkpoint)
    assert artifact.recipe == load(name)
    for linear_name, linear in artifact.linears():
        scheme = artifact.schemes[linear_name]
        assert linear.weight_type == scheme.weights.type
        assert (linear.input_scale is not None) == (scheme.inputs is not None and scheme.inputs.mode == "static")


@pytest.mark.parametrize("recipe", [load("int4-rtn"), UINT4], ids=["int4", "uint4"])
def test_quantized_values_and_scales_come_back_as_the_algorithm_made_them(
    synth_checkpoint: Checkpoint, tmp_path: Path, recipe
) -> None:
    calibrated(synth_checkpoint, recipe, tmp_path / "out", 1)
    found = Artifact.open(tmp_path / "out", synth_checkpoint).linear(LINEAR)
    weights = recipe.rules[0].scheme.weights
    weight = synth_checkpoint.read(f"{LINEAR}.weight").float()
    expected = round_to_nearest(weight, weights.type, weights.group_size, weights.clip)
    assert torch.equal(found.qweight, expected.qweight)
    assert torch.equal(found.scale, expected.scale)
    assert torch.equal(found.dequantize(), expected.dequantize())


@pytest.mark.parametrize("recipe", ["int4-rtn", "fp8-kv", "fp8-tensor"])
def test_values_that_follow_from_checkpoint_and_scales_are_not_stored(
    synth_checkpoint: Checkpoint, tmp_path: Path, recipe: str
) -> None:
    files = calibrated(synth_checkpoint, load(recipe), tmp_path / "out", 1)
    assert files.keys() == {"recipe.yaml", "scales.safetensors", "stats.json"}


def test_stored_values_are_read_although_they_would_follow(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibrated(synth_checkpoint, load("int4-rtn"), tmp_path / "out", 1)
    linear = Artifact.open(tmp_path / "out", synth_checkpoint).linear(LINEAR)
    (tmp_path / "out" / "qweight").mkdir()
    save_file({f"{LINEAR}.qweight": pack_pairs(-linear.qweight)}, tmp_path / "out" / "qweight" / f"{LAYER}.safetensors")
    with pytest.raises(BundleError, match="lacks tensors"):
        Artifact.open(tmp_path / "out", synth_checkpoint)
    save_file({f"{LINEAR}.weight_scale": 2 * linear.scale}, tmp_path / "out" / "scales.safetensors")
    artifact = Artifact.open(tmp_path / "out", synth_checkpoint)
    found = artifact.linear(LINEAR)
    assert torch.equal(found.qweight, -linear.qweight)
    assert torch.equal(found.scale, 2 * linear.scale)
    assert torch.equal(artifact.scales(LINEAR)[0], 2 * linear.scale)


@pytest.mark.parametrize("recipe", [load("int4-rtn"), load("fp8-rowwise"), UINT4], ids=["int4", "fp8", "uint4"])
def test_where_nothing_is_calibrated_nothing_is_stored_and_all_follows(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    calibrated(synth_checkpoint, recipe, tmp_path / "out", 1)
    assert not load_file(tmp_path / "out" / "scales.safetensors")
    monkeypatch.setattr(CalibrationPlan, "calibrated", CalibrationPlan.schemes)
    calibrated(synth_checkpoint, recipe, tmp_path / "stored", 1)
    assert load_file(tmp_path / "stored" / "scales.safetensors")
    alone, stored = (Artifact.open(tmp_path / name, synth_checkpoint) for name in ("out", "stored"))
    for name in alone.schemes:
        for found in (alone.linear(name), alone.parameters(name)):
            expected = vars(stored.parameters(name)) if found.qweight.is_meta else vars(stored.linear(name))
            for field, value in vars(found).items():
                if isinstance(value, torch.Tensor) and not value.is_meta:
                    assert torch.equal(value.view(torch.uint8), expected[field].view(torch.uint8)), (name, field)
                elif field != "qweight":
                    assert value == expected[field], (name, field)
    first, second = list(alone.schemes)[:2]
    alone.linear(first)
    assert torch.equal(alone.scales(second)[0], stored.scales(second)[0]), "not of the last one"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_where_it_is_rounded(
    synth_checkpoint: Checkpoint, tmp_path: Path, value: float
) -> None:
    broken = with_weights(synth_checkpoint, tmp_path / "broken", {f"{LINEAR}.weight": value})
    calibrated(broken, load("int4-rtn"), tmp_path / "out", 1)
    artifact = Artifact.open(tmp_path / "out", broken)
    for read in (artifact.linear, artifact.parameters, artifact.scales):
        with pytest.raises(CheckpointError, match="NaN or infinite") as caught:
            read(LINEAR)
        assert caught.value.where == f"{LINEAR}.weight"


@pytest.mark.parametrize(
    "recipe", [load("int4-awq"), load("int8-smoothquant"), parse(MIXED, "mixed")], ids=lambda r: r.name
)
def test_rescaled_weights_are_rounded_again_as_the_algorithm_rounded_them(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    files = calibrated(synth_checkpoint, recipe, tmp_path / "out", 1)
    assert files.keys() == {"recipe.yaml", "scales.safetensors", "stats.json"}
    blocks: list[QuantizedBlock] = []

    def keep(block: QuantizedBlock, *args: Any) -> dict[str, Tensor]:
        blocks.append(block)
        return qweight_tensors(block, *args)

    monkeypatch.setattr(CalibrationPlan, "rounded", frozenset())
    monkeypatch.setattr("r1v_export.quantization.calibration.calibrate.qweight_tensors", keep)
    calibrated(synth_checkpoint, recipe, tmp_path / "stored", 1)
    artifact = Artifact.open(tmp_path / "out", synth_checkpoint)
    made = {name: linear for block in blocks for name, linear in block.linears.items()}
    assert made.keys() == artifact.schemes.keys()
    for name, linear in made.items():
        found = artifact.linear(name)
        assert torch.equal(found.qweight.view(torch.uint8), linear.qweight.view(torch.uint8)), name
        assert torch.equal(found.scale, linear.scale), name
    overrides = {name: tensor for block in blocks for name, tensor in block.overrides.items()}
    assert artifact.overrides.keys() == overrides.keys()
    for name, tensor in overrides.items():
        assert torch.equal(artifact.overrides[name](), tensor), name


def test_large_weights_are_rescaled_a_few_rows_at_a_time(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated(synth_checkpoint, load("int4-awq"), tmp_path / "out", 1)
    artifact = Artifact.open(tmp_path / "out", synth_checkpoint)
    whole = {name: linear.qweight for name, linear in artifact.linears()}
    monkeypatch.setattr("r1v_export.quantization.rounded_weights._VALUES_AT_ONCE", 1000)
    assert all(torch.equal(linear.qweight, whole[name]) for name, linear in artifact.linears())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_smoothing_scale_that_cannot_be_is_refused(
    synth_checkpoint: Checkpoint, tmp_path: Path, value: float
) -> None:
    calibrated(synth_checkpoint, load("int4-awq"), tmp_path / "out", 1)
    name = f"{LAYER}.self_attn.q_proj.smoothing_scale"
    change(tmp_path / "out" / "scales.safetensors", lambda tensors: tensors[name][:1].fill_(value))
    with pytest.raises(BundleError, match=r"q_proj is damaged") as caught:
        Artifact.open(tmp_path / "out", synth_checkpoint)
    assert str(caught.value.where).endswith(name)


def test_four_bit_quantized_values_take_half_a_byte(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibrated(synth_checkpoint, load("int4-gptq"), tmp_path / "out", 1)
    qweight = load_file(tmp_path / "out" / "qweight" / f"{LAYER}.safetensors")[f"{LINEAR}.qweight"]
    out_features, in_features = synth_checkpoint.tensors[f"{LINEAR}.weight"].shape
    assert qweight.nbytes == out_features * in_features // 2


def test_rewritten_tensors_are_read_by_their_own_names(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibrated(synth_checkpoint, load("int4-awq"), tmp_path / "out", 1)
    overrides = Artifact.open(tmp_path / "out", synth_checkpoint).overrides
    assert f"{LAYER}.input_layernorm.weight" in overrides
    for name, read in overrides.items():
        assert read().shape == synth_checkpoint.tensors[name].shape


def test_cache_scales_belong_to_layers(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    calibrated(synth_checkpoint, load("fp8-kv"), folder, 1)
    scales = [Artifact.open(folder, synth_checkpoint).kv_scales(layer) for layer in range(2)]
    stored = load_file(folder / "scales.safetensors")
    assert scales[1] == KVScales(
        "fp8", float(stored[f"{LAYER}.self_attn.key_scale"]), float(stored[f"{LAYER}.self_attn.value_scale"])
    )
    assert scales[0] != scales[1]


def test_an_int8_cache_with_two_scales_is_refused(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibrated(synth_checkpoint, load("int8-kv"), tmp_path / "out", 1)
    scales = Artifact.open(tmp_path / "out", synth_checkpoint).kv_scales(1)
    assert scales is not None
    assert (scales.kind, scales.key) == ("int8", scales.value)
    change(tmp_path / "out" / "scales.safetensors", lambda t: t[f"{LAYER}.self_attn.value_scale"].mul_(2))
    with pytest.raises(BundleError, match=r"cache of decoder layer 1 is damaged[\s\S]*one scale, as int8 caches"):
        Artifact.open(tmp_path / "out", synth_checkpoint)


def test_without_a_quantized_cache_there_are_no_cache_scales(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibrated(synth_checkpoint, load("fp8"), tmp_path / "out", 1)
    assert Artifact.open(tmp_path / "out", synth_checkpoint).kv_scales(0) is None


def test_the_record_tells_samples_and_inputs(synth_checkpoint: Checkpoint, folder: Path) -> None:
    stats = Artifact.open(folder, synth_checkpoint).stats
    assert [sample.name for sample in stats.samples] == ["built-in 0"]
    seen = stats.inputs[LINEAR.replace("up_proj", "gate_proj")]
    assert seen.tokens == stats.samples[0].tokens
    assert seen.absmax >= seen.median_channel_absmax >= seen.mean > 0


def test_nothing_in_it_tells_where_or_when_it_was_made(int8: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in int8.items():
        assert str(tmp_path.parent.parent).encode() not in content, name
        assert b"/tmp/" not in content, name


def test_fingerprints_tell_checkpoints_apart(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    same = with_weights(synth_checkpoint, tmp_path / "same", {})
    other = with_weights(synth_checkpoint, tmp_path / "other", {"vision_model.encoder.layers.0.ls1": 0.25})
    assert checkpoint_fingerprint(same) == checkpoint_fingerprint(synth_checkpoint)
    assert checkpoint_fingerprint(other) != checkpoint_fingerprint(synth_checkpoint)


def test_the_calibration_of_another_checkpoint_is_refused(
    synth_checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    other = with_weights(synth_checkpoint, tmp_path / "other", {"vision_model.encoder.layers.0.ls1": 0.25})
    with pytest.raises(BundleError, match="another checkpoint"):
        Artifact.open(folder, other)


def change(path: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("name", [f"{LINEAR}.weight_scale", f"{LINEAR}.input_scale", f"{LAYER}.self_attn.key_scale"])
def test_a_scale_that_cannot_be_is_refused(synth_checkpoint: Checkpoint, folder: Path, name: str, value: float) -> None:
    change(folder / "scales.safetensors", lambda tensors: tensors[name].view(-1)[:1].fill_(value))
    with pytest.raises(BundleError, match=r"mlp\.up_proj is damaged|decoder layer 1 is damaged"):
        Artifact.open(folder, synth_checkpoint)


@pytest.mark.parametrize("name", [f"{LINEAR}.input_scale", f"{LAYER}.self_attn.key_scale"])
def test_a_per_tensor_scale_of_two_elements_is_refused_by_name_and_shape(
    synth_checkpoint: Checkpoint, folder: Path, name: str
) -> None:
    change(folder / "scales.safetensors", lambda tensors: tensors.update({name: tensors[name].repeat(2)}))
    with pytest.raises(BundleError) as caught:
        Artifact.open(folder, synth_checkpoint)
    assert str(caught.value.where).endswith(f"scales.safetensors: {name}")
    assert (caught.value.expected, caught.value.found) == ("float32 of shape []", "float32 of shape [2]")


def test_a_weight_with_one_scale_per_tensor_cannot_have_two(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibrated(synth_checkpoint, load("fp8-tensor"), tmp_path / "out", 1)
    Artifact.open(tmp_path / "out", synth_checkpoint)
    change(tmp_path / "out" / "scales.safetensors", lambda tensors: tensors[f"{LINEAR}.weight_scale"][0].mul_(2))
    with pytest.raises(BundleError, match="one scale for the whole weight") as caught:
        Artifact.open(tmp_path / "out", synth_checkpoint)
    assert f"{LINEAR}.weight_scale" in str(caught.value.where)


DAMAGES: dict[str, tuple[str, Callable[[dict[str, Tensor]], object], str]] = {
    "a missing scale": ("scales", lambda t: t.pop(f"{LINEAR}.weight_scale"), "lacks"),
    "a missing input scale": ("scales", lambda t: t.pop(f"{LINEAR}.input_scale"), "lacks"),
    "a missing cache scale": ("scales", lambda t: t.pop(f"{LAYER}.self_attn.value_scale"), "lacks"),
    "missing quantized values": (f"qweight/{LAYER}", lambda t: t.pop(f"{LINEAR}.qweight"), "lacks"),
    "a scale of no linear": ("scales", lambda t: t.update({"x.weight_scale": torch.ones(1)}), "does not call for"),
    "a tensor of no model": (f"qweight/{LAYER}", lambda t: t.update({"x": torch.ones(1)}), "does not have"),
    "scales of another shape": (
        "scales",
        lambda t: t.update({f"{LINEAR}.weight_scale": t[f"{LINEAR}.weight_scale"][1:].clone()}),
        "up_proj is damaged",
    ),
    "quantized values of another shape": (
        f"qweight/{LAYER}",
        lambda t: t.update(
            {f"{LINEAR}.qweight": t[f"{LINEAR}.qweight"].view(torch.uint8)[1:].view(t[f"{LINEAR}.qweight"].dtype)}
        ),
        "up_proj is damaged",
    ),
    "quantized values of another type": (
        f"qweight/{LAYER}",
        lambda t: t.update({f"{LINEAR}.qweight": t[f"{LINEAR}.qweight"].view(torch.uint8)}),
        "up_proj is damaged",
    ),
    "an override of another shape": (
        f"qweight/{LAYER}",
        lambda t: t.update({f"{LAYER}.input_layernorm.weight": torch.ones(3)}),
        "input_layernorm.weight is damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tensors_are_refused(synth_checkpoint: Checkpoint, folder: Path, damage: str) -> None:
    file, edit, message = DAMAGES[damage]
    change(folder / f"{file}.safetensors", edit)
    with pytest.raises(BundleError, match=message):
        Artifact.open(folder, synth_checkpoint)


@pytest.mark.parametrize("name", ["stats.json", "recipe.yaml", "scales.safetensors", f"qweight/{LAYER}.safetensors"])
def test_a_file_that_is_cut_off_or_missing_is_refused(synth_checkpoint: Checkpoint, folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BundleError):
        Artifact.open(folder, synth_checkpoint)
    path.unlink()
    with pytest.raises(BundleError):
        Artifact.open(folder, synth_checkpoint)


def test_a_record_of_another_version_or_with_unknown_fields_is_refused(
    synth_checkpoint: Checkpoint, folder: Path
) -> None:
    path = folder / "stats.json"
    record = json.loads(path.read_text())
    for changed in ({"schema_version": 2}, {"surprise": 1}):
        path.write_text(json.dumps(record | changed))
        with pytest.raises(BundleError, match=r"stats\.json is invalid"):
            Artifact.open(folder, synth_checkpoint)


def test_files_can_be_read_by_everyone_who_can_read_the_folder(folder: Path, synth_checkpoint, tmp_path: Path) -> None:
    calibrated(synth_checkpoint, load("int4-rtn"), tmp_path / "out", 1)
    probe = tmp_path / "probe"
    probe.touch()
    for name in files_of(tmp_path / "out"):
        assert (tmp_path / "out" / name).stat().st_mode == probe.stat().st_mode
