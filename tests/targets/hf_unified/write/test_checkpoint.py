"""Unified checkpoints: nothing is lost in them, and what they say of themselves is true."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors, stored_names
from r1v_export.pipeline.calibration import fake_quantize
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.imported import import_quantized
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.targets.hf_unified.runtime.reader import UnifiedFiles, open_unified
from r1v_export.targets.hf_unified.target import HfUnifiedTarget
from r1v_export.targets.hf_unified.write.checkpoint import write_unified
from tests.targets import vllm

ALGORITHM = {
    "fp8": "MIXED_PRECISION",  # the vision tower is quantized: vLLM reads it only where each linear is named
    "fp8-kv": "MIXED_PRECISION",
    "fp8-rowwise": "MIXED_PRECISION",
    "int4-awq": "W4A16_AWQ",
    "int4-rtn": "W4A16_AWQ",
    "w4a8": "MIXED_PRECISION",
}
PER_LINEAR = {"fp8": "FP8", "fp8-kv": "FP8", "fp8-rowwise": "FP8_PER_CHANNEL_PER_TOKEN"}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_every_weight_is_the_artifacts_bit_for_bit(written):
    files, spec = UnifiedFiles(written.folder), written.checkpoint.spec
    for name, linear in written.artifact.linears():
        parts = [part.removesuffix(".weight") for part in stored_names(f"{name}.weight", spec)]
        assert torch.equal(torch.cat([files.dequantized(part) for part in parts]), linear.dequantize())


def test_what_is_not_quantized_is_the_sources_bit_for_bit(written):
    stored, spec, artifact = tensors_of(written.folder), written.checkpoint.spec, written.artifact
    for name in expected_tensors(spec):
        if name.removesuffix(".weight") in artifact.schemes:
            continue
        tensor = torch.cat([stored[part] for part in stored_names(name, spec)])
        expected = artifact.overrides[name]() if name in artifact.overrides else written.checkpoint.read(name)
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)


def test_it_computes_what_the_fake_quantized_model_computes(written):
    model = load(written.checkpoint)
    fake_quantize(model, written.artifact)
    reference = ReferenceEngine(model)
    engine = HfUnifiedTarget().open(written.folder, written.checkpoint.spec, "cpu")
    tile = written.checkpoint.spec.tiling.tile_size
    pixels = torch.rand(1, 3, tile, tile, generator=torch.Generator().manual_seed(0)).numpy()
    features = reference.vision(pixels)
    assert abs(engine.vision(pixels) - features).max() < 1e-2 * abs(features).max()
    ids = torch.randint(0, 255, (1, 8), generator=torch.Generator().manual_seed(1)).numpy()
    embeds = reference.embed(ids, torch.zeros(0, written.checkpoint.spec.language.hidden_size).numpy())
    positions = torch.arange(8)[None].numpy()
    zero, eight, last = (torch.tensor(value).numpy() for value in ([0], [8], [[7]]))
    logits = [e.decoder(1, 16).step(embeds, positions, zero, eight, last) for e in (reference, engine)]
    assert abs(logits[0] - logits[1]).max() < 1e-2 * abs(logits[0]).max()


def test_cached_keys_and_values_are_rounded_by_the_scales_in_the_file(source, make, tmp_path):
    written = make(source, "fp8-kv")
    shutil.copytree(written.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("k_scale", "v_scale"))]:
        tensors[name] *= 20_000  # nearly everything is rounded to nothing
    save_file(tensors, path)
    embeds = torch.randn(1, 8, source.spec.language.hidden_size, generator=torch.Generator().manual_seed(0)).numpy()
    positions = torch.arange(8)[None].numpy()
    zero, eight, last = (torch.tensor(value).numpy() for value in ([0], [8], [[7]]))
    logits = [
        open_unified(folder, source.spec, "cpu").decoder(1, 16).step(embeds, positions, zero, eight, last)
        for folder in (written.folder, tmp_path / "copy")
    ]
    assert abs(logits[0] - logits[1]).max() > 1e-3 * abs(logits[0]).max()


def test_imported_again_it_has_the_same_quantized_values_and_scales_and_is_written_in_the_same_bytes(written, tmp_path):
    again = Checkpoint.open(written.folder)
    import_quantized(again, tmp_path / "calibration")
    artifact = Artifact.open(tmp_path / "calibration", again)
    assert list(artifact.schemes) == list(written.artifact.schemes)
    for name, linear in written.artifact.linears():
        other = artifact.linear(name)
        assert other.qweight.view(torch.int8).equal(linear.qweight.view(torch.int8))
        assert torch.equal(other.scale, linear.scale)
        assert (other.input_type, other.group_size) == (linear.input_type, linear.group_size)
        assert (other.input_scale is None) == (linear.input_scale is None)
        assert other.input_scale is None or torch.equal(other.input_scale, linear.input_scale)
    assert [artifact.kv_scales(layer) for layer in (0, 1)] == [written.artifact.kv_scales(layer) for layer in (0, 1)]
    (tmp_path / "out").mkdir()
    write_unified(again, artifact, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in written.folder.iterdir()
    }


@pytest.mark.parametrize("name", ALGORITHM)
def test_its_configuration_says_what_it_is(source, make, name):
    written = make(source, name)
    config = json.loads((written.folder / "hf_quant_config.json").read_text())["quantization"]
    mirror = json.loads((written.folder / "config.json").read_text())["quantization_config"]
    assert config["quant_algo"] == mirror["quant_algo"] == ALGORITHM[name]
    assert (config["kv_cache_quant_algo"] == "FP8") == ("kv_cache_scheme" in mirror) == (name == "fp8-kv")
    assert mirror["quant_method"] == "modelopt"
    assert mirror["ignore"] == config["exclude_modules"]
    head = stored_names("language_model.lm_head.weight", source.spec)[0].removesuffix(".weight")
    assert head in config["exclude_modules"]
    vision_is_out = any("vision" in pattern and pattern.endswith("*") for pattern in config["exclude_modules"])
    assert vision_is_out == name.startswith("int4")
    if name in PER_LINEAR:
        assert {layer["quant_algo"] for layer in config["quantized_layers"].values()} == {PER_LINEAR[name]}
        assert len(mirror["config_groups"]) == 1
    elif name == "w4a8":
        kinds = {layer["quant_algo"] for layer in config["quantized_layers"].values()}
        assert kinds == {"FP8", "W4A8_AWQ"}
        assert len(mirror["config_groups"]) == 2
    elif name.startswith("int4"):
        assert (config["group_size"], config["has_zero_point"], config["pre_quant_scale"]) == (128, False, True)


def test_the_sources_configuration_and_tokenizer_are_shipped(source, make):
    written = make(source, "fp8")
    config = json.loads((written.folder / "config.json").read_text())
    config.pop("quantization_config")
    assert config == json.loads((source.folder / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"):
        assert (written.folder / name).read_bytes() == (source.folder / name).read_bytes()


def test_the_code_that_reads_the_configuration_is_written_for_the_layout_that_needs_it(source, make):
    written = make(source, "fp8")
    code = [path.name for path in written.folder.glob("*.py")]
    assert code == (["configuration_skywork_chat.py"] if source.spec.layout == "internvl_chat" else [])


def test_linears_that_runtimes_fuse_have_equal_scales(source, make):
    for name, suffixes in (("fp8", ("weight_scale", "input_scale")), ("w4a8", ("weight_scale_2", "input_scale"))):
        stored = tensors_of(make(source, name).folder)
        groups = [[f"self_attn.{x}_proj" for x in "qkv"], ["mlp.gate_proj", "mlp.up_proj"]]
        for group in groups:
            for suffix in suffixes:
                found = [float(t) for n, t in stored.items() if any(f".1.{p}.{suffix}" in n for p in group)]
                assert len(found) == len(group)
                assert len(set(found)) == 1


def test_only_linears_that_are_not_fused_have_a_factor_on_their_input(source, make):
    stored = tensors_of(make(source, "int4-awq").folder)
    factors = {name: tensor for name, tensor in stored.items() if name.endswith("pre_quant_scale")}
    assert {name.split(".")[-2] for name in factors} == {"o_proj", "down_proj"}
    assert all(tensor.dtype == torch.bfloat16 and bool((tensor == 1).all()) for tensor in factors.values())


def test_int4_weights_are_brought_into_the_range_of_fp8(source, make):
    written = make(source, "w4a8")
    stored = tensors_of(written.folder)
    for name, linear in written.artifact.linears():
        if linear.weight_type == "int4":
            (part,) = stored_names(f"{name}.weight", source.spec)
            scale_2 = stored[part.removesuffix("weight") + "weight_scale_2"]
            assert float(linear.dequantize().abs().max() / scale_2) <= 448.001


def test_nothing_is_read_before_it_is_written(source, make, monkeypatch):
    from r1v_export.targets.hf_unified.write.tensors import unified_tensors

    written = make(source, "int4-rtn")
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(Artifact, "linear", lambda *_: pytest.fail("read"))
    assert sum(tensor.nbytes for tensor in unified_tensors(written.checkpoint, written.artifact)) > 0


@pytest.mark.parametrize("recipe", ["fp8-kv", "fp8-rowwise"])
def test_tensors_have_the_names_and_dtypes_that_vllm_loads(chat, make, recipe):
    folder = make(chat, recipe).folder
    stored = tensors_of(folder)
    layers = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]["quantized_layers"]
    for linear, layer in layers.items():
        own = {name.removeprefix(f"{linear}.") for name in stored if name.startswith(f"{linear}.")}
        found = {
            suffix: str(stored[f"{linear}.{suffix}"].dtype).removeprefix("torch.")
            for suffix in own - {"bias", "k_scale", "v_scale"}
        }
        assert found == vllm.READER["modelopt"]["tensors"][layer["quant_algo"]]
    scales = [name for name in stored if name.endswith(("k_scale", "v_scale"))]
    assert bool(scales) == (recipe == "fp8-kv")
    assert all(name.endswith(tuple(vllm.READER["cache_scales"])) for name in scales)
