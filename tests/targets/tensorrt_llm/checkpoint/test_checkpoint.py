"""What is written comes back: every format, every number of GPUs, bit for bit, through a reader of its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from r1v_export.pipeline.calibration import fake_quantize
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.kv_scales import KVScales
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.reference.language import CacheStep, LanguageModel, rotary_tables
from r1v_export.reference.model import load
from r1v_export.targets.tensorrt_llm.checkpoint.encode import encode
from r1v_export.targets.tensorrt_llm.checkpoint.formats import QuantFormat
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import Mapping
from r1v_export.targets.tensorrt_llm.checkpoint.reader import LanguageCheckpoint, read_checkpoint
from r1v_export.targets.tensorrt_llm.checkpoint.writer import write_checkpoint
from r1v_export.targets.tensorrt_llm.runtime.engine import load_language_model
from tests.targets.tensorrt_llm.cases import SCHEMES, make_artifact, recipe

FORMATS = ("bf16", *SCHEMES)
LAYOUTS = (Mapping(1), Mapping(2), Mapping(4), Mapping(8), Mapping(1, 2), Mapping(2, 2))


def write(checkpoint, artifact, folder: Path, parallel: Mapping, dtype=torch.bfloat16, **options) -> Path:
    folder.mkdir()
    write_checkpoint(checkpoint, artifact, folder, dtype, parallel=parallel, **options)
    return folder


def written(wide, quantized, name: str, folder: Path, parallel: Mapping, **options) -> LanguageCheckpoint:
    artifact = None if name == "bf16" else quantized(name)
    return read_checkpoint(write(wide, artifact, folder, parallel, **options))


def same(a: QuantizedLinear, b: QuantizedLinear) -> bool:
    """Bit for bit."""
    pairs = [(vars(a)[field], vars(b)[field]) for field in ("qweight", "scale", "zero_point", "input_scale")]
    kinds = [(x.weight_type, x.input_type, x.group_size) for x in (a, b)]
    bits = all((x is None and y is None) or torch.equal(_bits(x), _bits(y)) for x, y in pairs)
    return bits and kinds[0] == kinds[1]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def logits(model: LanguageModel) -> torch.Tensor:
    """[1, S, V] of a fixed, made-up sequence."""
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 9, model.spec.hidden_size, generator=generator)
    positions = torch.arange(9)[None]
    start = torch.zeros(1, dtype=torch.int64)
    step = CacheStep(positions, start, start + 9)
    with torch.no_grad():
        return model(embeds, rotary_tables(model.spec, 16), step, None)[0]


@pytest.mark.parametrize("parallel", LAYOUTS, ids=lambda p: f"tp{p.tp}pp{p.pp}")
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "uint4"])
def test_the_numbers_of_calibration_come_back_bit_for_bit(wide, quantized, tmp_path, name, parallel):
    found = written(wide, quantized, name, tmp_path / "a", parallel)

    artifact = None if name == "bf16" else quantized(name)
    expected = dict(artifact.linears()) if artifact else {}
    assert {f"language_model.{linear}" for linear in found.linears} == set(expected)
    assert all(same(found.linears[linear.removeprefix("language_model.")], expected[linear]) for linear in expected)
    overrides = artifact.overrides if artifact else {}
    for linear, tensor in found.tensors.items():
        source = f"language_model.{linear}"
        original = overrides[source]() if source in overrides else wide.read(source)
        assert torch.equal(tensor, original.to(torch.bfloat16)), linear


@pytest.mark.parametrize("parallel", [Mapping(2), Mapping(8), Mapping(2, 2)], ids=lambda p: f"tp{p.tp}pp{p.pp}")
def test_weights_with_zero_points_agree_over_gpus_bit_for_bit(wide, quantized, tmp_path, parallel):
    one = written(wide, quantized, "uint4", tmp_path / "one", Mapping())
    many = written(wide, quantized, "uint4", tmp_path / "many", parallel)

    assert all(same(one.linears[name], many.linears[name]) for name in one.linears)


@pytest.mark.parametrize("layout", [80, 90])
def test_weights_with_zero_points_keep_values_and_zero_points_and_round_scales(wide, quantized, tmp_path, layout):
    found = written(wide, quantized, "uint4", tmp_path / "a", Mapping(2), layout=layout)

    for name, expected in quantized("uint4").linears():
        linear = found.linears[name.removeprefix("language_model.")]
        assert torch.equal(linear.qweight, expected.qweight)
        assert torch.equal(linear.zero_point, expected.zero_point)
        # The loader takes these scales as they are, so they are in the model's dtype.
        assert torch.equal(linear.scale, expected.scale.to(torch.bfloat16).float())


@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_the_fake_quantized_model(wide, quantized, tmp_path, name):
    artifact = None if name == "bf16" else quantized(name)
    folder = write(wide, artifact, tmp_path / "a", Mapping(2))
    reference = load(wide)
    if artifact is not None:
        fake_quantize(reference, artifact)

    found = logits(load_language_model(folder, wide.spec).language_model)
    expected = logits(reference.language_model)

    # Nothing is rounded but what the model holds in 16 bits: a norm's weight here, scales of weights with zero points.
    limit = 2e-2 if name in ("fp8", "fp8-rowwise", "int8", "w4a8") else 0.0 if name == "bf16" else 1e-2
    assert float((found - expected).norm() / expected.norm()) <= limit
    assert (name == "bf16") == bool(torch.equal(found, expected))


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_quantized_cache_is_computed_with_its_one_scale(wide, quantized, tmp_path, kind):
    """Of FP8, keys' scale is twice the values' here, which an engine must round with the larger one."""
    folder = write(wide, quantized(f"{kind}-kv"), tmp_path / "kv", Mapping(2), dtype=torch.float32)
    reference = load(wide)
    fake_quantize(reference, quantized(f"{kind}-kv"))
    for layer in reference.language_model.model.layers:
        layer.self_attn.cached_value = layer.self_attn.cached_key

    found = logits(load_language_model(folder, wide.spec).language_model)

    assert torch.equal(found, logits(reference.language_model))
    without = write(wide, quantized(kind), tmp_path / "without", Mapping(), dtype=torch.float32)
    assert not torch.equal(found, logits(load_language_model(without, wide.spec).language_model))


def test_in_float32_logits_are_the_reference_s_exactly(wide, quantized, tmp_path):
    """Nothing at all is rounded then: the proof that every number is in its place."""
    for name in ("fp8", "fp8-rowwise", "int8", "int4", "w4a8"):
        folder = write(wide, quantized(name), tmp_path / name, Mapping(4), dtype=torch.float32)
        reference = load(wide)
        fake_quantize(reference, quantized(name))
        found = logits(load_language_model(folder, wide.spec).language_model)
        assert torch.equal(found, logits(reference.language_model)), name


def test_the_same_input_gives_the_same_bytes(wide, quantized, tmp_path):
    first = write(wide, quantized("int4"), tmp_path / "a", Mapping(2))
    second = write(wide, quantized("int4"), tmp_path / "b", Mapping(2))

    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "rank0.safetensors", "rank1.safetensors"]


def test_files_have_the_names_shapes_and_dtypes_of_the_format(wide, quantized, tmp_path):
    folder = write(wide, quantized("int4"), tmp_path / "a", Mapping(2))

    with safe_open(folder / "rank1.safetensors", "pt") as file:
        found = {
            name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape()))
            for name in file.keys()  # noqa: SIM118
        }
    layer = "transformer.layers.1"
    linears = {
        "attention.qkv": ((512, 1024), (1024, 16), 1024),
        "attention.dense": ((512, 512), (1024, 8), 512),
        "mlp.fc": ((256, 1024), (512, 16), 1024),
        "mlp.gate": ((256, 1024), (512, 16), 1024),
        "mlp.proj": ((512, 512), (1024, 8), 512),
    }
    expected = {f"{layer}.attention.qkv.bias": ("BF16", (1024,))}
    for name, (weight, scale, inputs) in linears.items():
        expected[f"{layer}.{name}.weight"] = ("I8", weight)
        expected[f"{layer}.{name}.weights_scaling_factor"] = ("F32", scale)
        expected[f"{layer}.{name}.prequant_scaling_factor"] = ("BF16", (inputs,))
    for norm in ("input_layernorm", "post_layernorm"):
        expected[f"{layer}.{norm}.weight"] = ("BF16", (1024,))
    assert {name: entry for name, entry in found.items() if name.startswith(layer)} == expected
    assert found["transformer.vocab_embedding.weight"] == ("BF16", (523, 1024))
    assert found["lm_head.weight"] == ("BF16", (262, 1024))
    assert found["transformer.ln_f.weight"] == ("BF16", (1024,))


def test_the_vocabulary_is_padded_with_zeros_to_a_multiple_of_the_gpus(wide, tmp_path):
    folder = write(wide, None, tmp_path / "a", Mapping(8))

    last = load_file(folder / "rank7.safetensors")["lm_head.weight"]
    assert last.shape == (66, 1024)
    assert 523 == 7 * 66 + 61
    assert not last[61:].any()
    assert last[:61].any(dim=1).all()
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 523


def test_the_activated_half_of_the_mlp_is_called_fc(wide, tmp_path):
    tensors = load_file(write(wide, None, tmp_path / "a", Mapping()) / "rank0.safetensors")

    layer = "language_model.model.layers.0.mlp"
    assert torch.equal(tensors["transformer.layers.0.mlp.fc.weight"], wide.read(f"{layer}.gate_proj.weight"))
    assert torch.equal(tensors["transformer.layers.0.mlp.gate.weight"], wide.read(f"{layer}.up_proj.weight"))


def test_each_stage_numbers_its_layers_from_zero_and_has_its_ends_only(wide, tmp_path):
    folder = write(wide, None, tmp_path / "a", Mapping(1, 2))
    first, second = (set(load_file(folder / f"rank{rank}.safetensors")) for rank in range(2))

    assert "transformer.vocab_embedding.weight" in first - second
    assert {"transformer.ln_f.weight", "lm_head.weight"} <= second - first
    assert {name for name in first if ".layers." in name} == {name for name in second if ".layers." in name}


@pytest.mark.parametrize("part", ["self_attn.k_proj", "mlp.up_proj"])
def test_scales_that_one_product_must_share_are_shared_by_rounding_again(wide, quantized, tmp_path, part):
    """As imported checkpoints have them: every linear a scale of its own."""
    folder = Path(shutil.copytree(quantized("fp8").folder, tmp_path / "artifact"))
    scales, name = load_file(folder / "scales.safetensors"), f"language_model.model.layers.0.{part}"
    scales[f"{name}.weight_scale"] *= 3
    scales[f"{name}.input_scale"] *= 2
    save_file(scales, folder / "scales.safetensors")
    artifact = Artifact.open(folder, wide)

    found = read_checkpoint(write(wide, artifact, tmp_path / "a", Mapping(2))).linears

    fellow = name.replace("k_proj", "q_proj").replace("up_proj", "gate_proj")
    for linear in (name, fellow):
        ours = found[linear.removeprefix("language_model.")]
        assert bool((ours.scale == scales[f"{name}.weight_scale"][0]).all())
        assert ours.input_scale == scales[f"{name}.input_scale"]
        expected = artifact.linear(linear).dequantize()
        # The coarser grid's rounding: half of an eighth.
        assert bool(((ours.dequantize() - expected).abs() <= expected.abs() / 16 + ours.scale[0] * 2**-9).all())
    assert torch.equal(
        found[name.removeprefix("language_model.")].qweight.float(), artifact.linear(name).qweight.float()
    )


@pytest.mark.parametrize("parallel", [Mapping(1), Mapping(2)], ids=["tp1", "tp2"])
def test_factors_on_inputs_come_back(wide, quantized, tmp_path, parallel):
    """As imported AWQ checkpoints have them, where nothing could take them up."""
    factors = torch.linspace(0.5, 2, 1024).to(torch.bfloat16)
    folder = write(wide, quantized("int4"), tmp_path / "a", parallel)
    for rank in range(parallel.tp):
        path = folder / f"rank{rank}.safetensors"
        share = factors.chunk(parallel.tp)[rank]
        changed = {
            "transformer.layers.0.attention.qkv.prequant_scaling_factor": factors,
            "transformer.layers.0.mlp.proj.prequant_scaling_factor": share.clone(),
        }
        save_file(load_file(path) | changed, path)

    found = read_checkpoint(folder).linears

    layer = "model.layers.0"
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"):
        assert torch.equal(found[f"{layer}.{name}"].pre_quant_scale, factors.float())
    assert found[f"{layer}.mlp.up_proj"].pre_quant_scale is None


def test_the_writer_stores_factors_on_inputs(wide, quantized):
    linear = replace(
        quantized("int4").linear("language_model.model.layers.0.mlp.down_proj"),
        pre_quant_scale=torch.full((1024,), 0.75),
    )

    parts = encode(linear, QuantFormat("W4A16_AWQ", 64), torch.bfloat16)

    assert torch.equal(parts["prequant_scaling_factor"].tensor, torch.full((1024,), 0.75, dtype=torch.bfloat16))
    assert parts["prequant_scaling_factor"].inputs == 0


@pytest.mark.parametrize(("kind", "scale"), [("fp8", 0.25), ("int8", 0.02)])
@pytest.mark.parametrize("parallel", LAYOUTS, ids=lambda p: f"tp{p.tp}pp{p.pp}")
def test_the_cache_s_scale_is_that_of_the_larger_of_keys_and_values(wide, quantized, tmp_path, kind, scale, parallel):
    found = written(wide, quantized, f"{kind}-kv", tmp_path / "a", parallel)

    exact = float(torch.tensor(scale))
    assert found.kv_scales == {layer: KVScales(kind, exact, exact) for layer in (0, 1)}
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["quantization"]["kv_cache_quant_algo"] == kind.upper()
    stored = load_file(tmp_path / "a" / "rank0.safetensors")["transformer.layers.0.attention.kv_cache_scaling_factor"]
    assert torch.equal(stored, torch.tensor([scale]))


def test_w4a8_s_second_scale_keeps_weights_within_fp8(wide, quantized, tmp_path):
    tensors = load_file(write(wide, quantized("w4a8"), tmp_path / "a", Mapping()) / "rank0.safetensors")

    name = "transformer.layers.0.mlp.proj"
    largest = 8 * tensors[f"{name}.weights_scaling_factor"] / tensors[f"{name}.weights_scaling_factor_2"]
    assert float(largest.max()) == pytest.approx(448, rel=1e-6)


class TestMixed:
    RULES = (
        f"language_model.*: {SCHEMES['int4']}",
        f"language_model.model.layers.0.*: {SCHEMES['fp8']}",
        "language_model.model.layers.1.self_attn.*: null",
    )

    def test_comes_back_bit_for_bit(self, wide, tmp_path):
        artifact = make_artifact(wide, recipe(*self.RULES), tmp_path / "artifact")
        found = read_checkpoint(write(wide, artifact, tmp_path / "a", Mapping(2)))

        for name, expected in artifact.linears():
            assert same(found.linears[name.removeprefix("language_model.")], expected)
        assert "model.layers.1.self_attn.o_proj.weight" in found.tensors

    def test_says_how_each_linear_is_quantized(self, wide, tmp_path):
        artifact = make_artifact(wide, recipe(*self.RULES), tmp_path / "artifact")
        folder = write(wide, artifact, tmp_path / "a", Mapping())

        config = json.loads((folder / "config.json").read_text())["quantization"]
        layers = json.loads((folder / "quant_cfg.json").read_text())["quantized_layers"]
        assert config == {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None}
        assert layers["transformer.layers.0.mlp.fc"]["quant_algo"] == "FP8"
        assert layers["transformer.layers.1.mlp.fc"]["quant_algo"] == "W4A16_AWQ"
        assert layers["transformer.layers.1.mlp.fc"]["group_size"] == 64
        assert "transformer.layers.1.attention.qkv" not in layers

    def test_linears_in_16_bits_are_excluded_by_name_where_all_others_are_alike(self, wide, tmp_path):
        rules = (f"language_model.*: {SCHEMES['fp8']}", "*.mlp.down_proj: null")
        artifact = make_artifact(wide, recipe(*rules), tmp_path / "artifact")
        folder = write(wide, artifact, tmp_path / "a", Mapping())

        quantization = json.loads((folder / "config.json").read_text())["quantization"]
        assert quantization["quant_algo"] == "FP8"
        assert quantization["exclude_modules"] == ["lm_head", *(f"transformer.layers.{i}.mlp.proj" for i in (0, 1))]
        assert "model.layers.0.mlp.down_proj.weight" in read_checkpoint(folder).tensors
