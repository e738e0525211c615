"""Quantized checkpoints become calibration artifacts: the same quantized values, the same scales, the same function."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.errors import BundleError, CheckpointError, UsageError
from r1v_export.quantization.algorithms.rtn import round_to_nearest
from r1v_export.quantization.apply.torch import apply
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.calibrate import make_plan
from r1v_export.quantization.calibration.imported import import_quantized, imported_recipe
from r1v_export.quantization.recipe import parse
from r1v_export.reference.language import CacheStep, DecoderLayer, rotary_tables
from r1v_export.targets.hf_unified.write.checkpoint import write_unified
from tests.quantized_checkpoints import (
    AWQ,
    GPTQ,
    GPTQ_8,
    autogptq_weight,
    pack_awq,
    pack_gptq,
    quantized_copy,
    set_quantization,
)

LAYER = "language_model.model.layers.0"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    return synthesize(folder, preset="nano", vision_layers=1, language_layers=2)


def imported(folder: Path, out: Path) -> Artifact:
    checkpoint = Checkpoint.open(folder)
    import_quantized(checkpoint, out)
    return Artifact.open(out, checkpoint)


@pytest.mark.parametrize(("pack", "config"), [(pack_awq, AWQ), (pack_gptq, GPTQ)])
def test_the_artifact_holds_the_checkpoints_own_quantized_values(source, tmp_path, pack, config):
    truth = quantized_copy(source, tmp_path / "model", pack, config)
    artifact = imported(tmp_path / "model", tmp_path / "out")
    assert set(artifact.schemes) == set(truth)
    assert not artifact.overrides
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"recipe.yaml", "scales.safetensors", "stats.json"}
    for name, (qweight, scale, zero) in truth.items():
        linear = artifact.linear(name)
        assert torch.equal(linear.qweight, qweight.to(torch.int8))
        assert torch.equal(linear.scale, scale.float())
        assert torch.equal(linear.zero_point, zero.to(torch.int8))
        assert torch.equal(linear.dequantize(), Checkpoint.open(tmp_path / "model").read(f"{name}.weight"))


def test_a_recipe_that_is_not_the_checkpoints_own_is_refused(source, tmp_path):
    quantized_copy(source, tmp_path / "model", pack_awq, AWQ)
    imported(tmp_path / "model", tmp_path / "out")
    recipe = tmp_path / "out" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("group_size: 32", "group_size: 64"))
    scales = load_file(tmp_path / "out" / "scales.safetensors")
    halved = {name: t[:, ::2].contiguous() if t.ndim == 2 else t for name, t in scales.items()}
    save_file(halved, tmp_path / "out" / "scales.safetensors")
    with pytest.raises(BundleError, match=r"uint4 values in groups of 64 in the checkpoint"):
        Artifact.open(tmp_path / "out", Checkpoint.open(tmp_path / "model"))


def test_a_symmetric_gptq_checkpoint_is_int4(source, tmp_path):
    quantized_copy(source, tmp_path / "model", pack_gptq, GPTQ | {"sym": True}, symmetric=True)
    schemes = imported(tmp_path / "model", tmp_path / "out").schemes
    assert {(scheme.weights.type, scheme.inputs) for scheme in schemes.values()} == {("int4", None)}


@pytest.mark.parametrize(("group", "act_order"), [(32, False), (32, True), (-1, False)])
def test_8_bits_keep_their_quantized_values_in_groups_or_per_channel(source, tmp_path, group, act_order):
    config = GPTQ_8 | {"group_size": group, "desc_act": act_order}
    truth = quantized_copy(source, tmp_path / "model", partial(pack_gptq, bits=8), config, symmetric=True)
    artifact = imported(tmp_path / "model", tmp_path / "out")
    assert artifact.recipe.precision == "int8"
    stored = load_file(tmp_path / "model" / "model.safetensors")
    for name, (qweight, _, _) in truth.items():
        linear, order = artifact.linear(name), stored[f"{name}.g_idx"].argsort(stable=True)
        assert (linear.weight_type, linear.group_size) == ("int8", 32 if group == 32 else None)
        assert torch.equal(linear.qweight, (qweight - 128)[:, order].to(torch.int8))
        assert torch.equal(linear.dequantize(), torch.from_numpy(autogptq_weight(stored, name, bits=8).T.copy()))


def test_an_import_that_was_stopped_goes_on_and_ends_in_the_same_bytes(source, tmp_path, monkeypatch):
    quantized_copy(source, tmp_path / "model", pack_awq, AWQ)
    imported(tmp_path / "model", tmp_path / "whole")
    checkpoint, seen = Checkpoint.open(tmp_path / "model"), []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_quantized(checkpoint, tmp_path / "out", on_progress=stop)
    import_quantized(checkpoint, tmp_path / "out")
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in tmp_path.glob("[wo]*")]
    assert len(files) == 2
    assert files[0] == files[1]


def test_columns_in_act_order_keep_their_quantized_values_and_compute_the_same(source, tmp_path):
    truth = quantized_copy(source, tmp_path / "model", pack_gptq, GPTQ | {"desc_act": True})
    artifact = imported(tmp_path / "model", tmp_path / "out")
    assert all(scheme.has_input_order for scheme in artifact.schemes.values())
    stored = load_file(tmp_path / "model" / "model.safetensors")
    shutil.copytree(source, tmp_path / "float")
    floats = load_file(source / "model.safetensors")
    for name, (qweight, _, _) in truth.items():
        linear = artifact.linear(name)
        order = stored[f"{name}.g_idx"].argsort(stable=True)
        assert torch.equal(linear.input_order, order.to(torch.int32))
        assert torch.equal(linear.qweight, qweight[:, order].to(torch.int8))
        floats[f"{name}.weight"] = torch.from_numpy(autogptq_weight(stored, name).T.copy())
        assert torch.equal(linear.dequantize(), floats[f"{name}.weight"])
    save_file(floats, tmp_path / "float" / "model.safetensors")
    expected = decoder_output(Checkpoint.open(tmp_path / "float"), None)
    found = decoder_output(Checkpoint.open(tmp_path / "model"), artifact)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_only_columns_in_act_order_add_to_the_recipe(source, tmp_path):
    quantized_copy(source, tmp_path / "model", pack_gptq, GPTQ)
    assert "act_order" not in imported_recipe(Checkpoint.open(tmp_path / "model")).to_yaml()
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors[f"{LAYER}.mlp.up_proj.g_idx"] = tensors[f"{LAYER}.mlp.up_proj.g_idx"].flip(0).contiguous()
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    recipe = imported_recipe(Checkpoint.open(tmp_path / "model"))
    assert parse(recipe.to_yaml()) == recipe
    assert [rule.modules for rule in recipe.rules if "act_order" in rule.model_dump()["scheme"]["weights"]] == [
        (f"{LAYER}.mlp.up_proj",)
    ]


@pytest.mark.parametrize("damage", ["lost", "repeated"])
def test_an_artifact_whose_input_order_is_damaged_is_refused(source, tmp_path, damage):
    quantized_copy(source, tmp_path / "model", pack_gptq, GPTQ | {"desc_act": True})
    imported(tmp_path / "model", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "scales.safetensors")
    order = tensors.pop(f"{LAYER}.mlp.up_proj.input_order")
    if damage == "repeated":
        tensors[f"{LAYER}.mlp.up_proj.input_order"] = torch.cat((order[1:], order[1:2]))
    save_file(tensors, tmp_path / "out" / "scales.safetensors")
    with pytest.raises(BundleError, match="up_proj"):
        Artifact.open(tmp_path / "out", Checkpoint.open(tmp_path / "model"))


def test_its_recipe_cannot_be_calibrated_by(source, tmp_path):
    quantized_copy(source, tmp_path / "model", pack_awq, AWQ)
    recipe = imported_recipe(Checkpoint.open(tmp_path / "model"))
    assert parse(recipe.to_yaml()) == recipe
    with pytest.raises(UsageError, match="quantized already"):
        make_plan(Checkpoint.open(source), recipe)


def test_groups_that_no_target_takes_are_refused(source, tmp_path):
    quantized_copy(source, tmp_path / "model", pack_awq, AWQ)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    for name in [name for name in tensors if name.endswith((".scales", ".qzeros"))]:
        tensors[name] = tensors[name].repeat_interleave(2, 0)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    set_quantization(tmp_path / "model", AWQ | {"group_size": 16})
    with pytest.raises(CheckpointError, match="groups of 32, 64, 128 inputs"):
        imported_recipe(Checkpoint.open(tmp_path / "model"))


def test_nan_in_a_scale_stops_the_import_and_names_the_linear(source, tmp_path):
    quantized_copy(source, tmp_path / "model", pack_awq, AWQ)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors[f"{LAYER}.mlp.up_proj.scales"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj"):
        imported(tmp_path / "model", tmp_path / "out")
    shutil.rmtree(tmp_path / "model")


UNIFIED = {"quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": False, "pre_quant_scale": True}


def unified_with_pre_quant_scales(source: Path, out: Path, scales: Mapping[str, Tensor]) -> None:
    """A unified INT4 copy of layer 0, its linears rounded to nearest; some multiply their input first."""
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    for name in [name for name in tensors if name.startswith(LAYER) and name.endswith("proj.weight")]:
        linear = round_to_nearest(tensors.pop(name).float(), "int4", 128)
        stem = name.removesuffix("weight")
        qweight = linear.qweight & 0xF
        tensors[name] = (qweight[::2] | qweight[1::2] << 4).view(torch.uint8)
        tensors[stem + "weight_scale"] = linear.scale
    tensors |= {f"{LAYER}.{linear}.pre_quant_scale": scale for linear, scale in scales.items()}
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, out / "model.safetensors")
    (out / "hf_quant_config.json").write_text(json.dumps({"quantization": UNIFIED}))


def random_scale(size: int, seed: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) + 0.5


def decoder_output(checkpoint: Checkpoint, artifact: Artifact | None) -> Tensor:
    """What layer 0 gives for some input, with the weights that `checkpoint.read` gives or the artifact's."""
    spec = checkpoint.spec.language
    layer = DecoderLayer(spec)
    prefix = f"{LAYER}."
    layer.load_state_dict({name: checkpoint.read(prefix + name).float() for name in layer.state_dict()})
    if artifact is not None:
        apply(layer, dict(artifact.linears()), {n: read() for n, read in artifact.overrides.items()}, prefix)
    x = torch.randn(1, 6, spec.hidden_size, generator=torch.Generator().manual_seed(5))
    positions = torch.arange(6)[None]
    step = CacheStep(positions, torch.zeros(1, dtype=torch.int64), torch.full((1,), 6))
    with torch.no_grad():
        return layer(x, rotary_tables(spec, 6), step, None)[0]


def test_pre_quant_scales_move_into_the_layer_before_and_the_layer_computes_the_same(source, tmp_path):
    spec = Checkpoint.open(source).spec.language
    shared, num_kv_groups = random_scale(spec.num_kv_heads * spec.head_dim, 1), spec.num_heads // spec.num_kv_heads
    heads = shared.view(spec.num_kv_heads, 1, spec.head_dim).expand(-1, num_kv_groups, -1).reshape(-1)
    hidden, gated = random_scale(spec.hidden_size, 2), random_scale(spec.intermediate_size, 3)
    scales = {f"self_attn.{name}_proj": hidden for name in "qkv"}
    scales |= {"self_attn.o_proj": heads, "mlp.down_proj": gated}
    unified_with_pre_quant_scales(source, tmp_path / "model", scales)
    checkpoint = Checkpoint.open(tmp_path / "model")
    artifact = imported(tmp_path / "model", tmp_path / "out")
    assert set(artifact.overrides) == {f"{LAYER}.input_layernorm.weight"}
    plain = {name: linear.decode() for name, linear in checkpoint.quantized.linears.items()}
    for name, linear in artifact.linears():
        assert torch.equal(linear.qweight, plain[name].qweight)
        assert torch.equal(linear.scale, plain[name].scale)
    expected = decoder_output(checkpoint, None)  # read() multiplies the scale into the weight
    torch.testing.assert_close(decoder_output(checkpoint, artifact), expected, rtol=1e-4, atol=1e-4)


def test_a_pre_quant_scale_that_differs_between_heads_of_one_value_stays_with_its_linear(source, tmp_path):
    spec = Checkpoint.open(source).spec.language
    assert spec.num_heads > spec.num_kv_heads
    own = random_scale(spec.num_heads * spec.head_dim, 1)
    unified_with_pre_quant_scales(source, tmp_path / "model", {"self_attn.o_proj": own})
    checkpoint = Checkpoint.open(tmp_path / "model")
    artifact = imported(tmp_path / "model", tmp_path / "out")
    assert not artifact.overrides
    linear = artifact.linear(f"{LAYER}.self_attn.o_proj")
    assert torch.equal(linear.pre_quant_scale, own)
    assert [name for name, scheme in artifact.schemes.items() if scheme.has_pre_quant_scale] == [
        f"{LAYER}.self_attn.o_proj"
    ]
    expected = decoder_output(checkpoint, None)
    torch.testing.assert_close(decoder_output(checkpoint, artifact), expected, rtol=1e-4, atol=1e-4)
    (tmp_path / "again").mkdir()
    write_unified(checkpoint, artifact, tmp_path / "again")
    written, given = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "model"))
    for name in (name for name in given if ".o_proj." in name):
        assert torch.equal(written[name], given[name])


def test_a_pre_quant_scale_that_not_all_readers_of_a_tensor_have_is_refused(source, tmp_path):
    spec = Checkpoint.open(source).spec.language
    unified_with_pre_quant_scales(source, tmp_path / "model", {"self_attn.k_proj": random_scale(spec.hidden_size, 1)})
    with pytest.raises(CheckpointError, match=r"self_attn\.q_proj"):
        imported(tmp_path / "model", tmp_path / "out")
