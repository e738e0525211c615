"""Checkpoints that the package compressed-tensors made are read bit for bit, and as the package reads them itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.compressors.pack_quantized import unpack_from_int32

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.errors import CheckpointError
from tests.checkpoint.conftest import TINY, edit_json, edit_tensors, refusal, set_key
from tests.compressed_checkpoints import LARGEST_INPUT, Compressed, compress

WEIGHTS = "model.safetensors"
LAYER = "language_model.model.layers.1"
LINEAR = f"{LAYER}.mlp.gate_proj"
LANGUAGE_ONLY = ["re:vision_model.*", "re:mlp1.*", "re:.*lm_head"]

INT4 = {"num_bits": 4, "strategy": "group", "group_size": 32}
FP8 = {"num_bits": 8, "type": "float"}
INT8_TOKENS = {"num_bits": 8, "strategy": "token", "dynamic": True}
FP8_TOKENS = FP8 | {"strategy": "token", "dynamic": True}
FP8_CACHE = FP8 | {"strategy": "tensor"}


def config(weights: dict[str, Any], inputs: dict[str, Any] | None = None, **other: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"config_groups": {"group_0": group}, "ignore": LANGUAGE_ONLY, **other}


CASES = {
    "W4A16": (config(INT4), "pack-quantized int4 in groups of 32"),
    "W4A16 asymmetric": (config(INT4 | {"symmetric": False}), "pack-quantized uint4 in groups of 32"),
    "W4A16 act-order": (config(INT4 | {"actorder": "group"}), "pack-quantized int4 in groups of 32"),
    "W4A16 asymmetric act-order": (
        config(INT4 | {"symmetric": False, "actorder": "group"}),
        "pack-quantized uint4 in groups of 32",
    ),
    "W4A16 static act-order": (config(INT4 | {"actorder": "weight"}), "pack-quantized int4 in groups of 32"),
    "W4A16 per channel": (config({"num_bits": 4, "strategy": "channel"}), "pack-quantized int4 per channel"),
    "W4A16 per channel asymmetric": (
        config({"num_bits": 4, "strategy": "channel", "symmetric": False}),
        "pack-quantized uint4 per channel",
    ),
    "W8A16": (config(INT4 | {"num_bits": 8}), "pack-quantized int8 in groups of 32"),
    "W8A16 per channel": (config({"num_bits": 8, "strategy": "channel"}), "pack-quantized int8 per channel"),
    "W8A16 per tensor": (config({"num_bits": 8, "strategy": "tensor"}), "pack-quantized int8 per tensor"),
    "W4AFP8": (config(INT4, FP8_TOKENS), "int-quantized int4 in groups of 32, fp8 dynamic inputs"),
    "FP8": (
        config(FP8 | {"strategy": "tensor"}, FP8 | {"strategy": "tensor"}),
        "float-quantized fp8 per tensor, fp8 static inputs",
    ),
    "FP8 per channel static": (
        config(FP8 | {"strategy": "channel"}, FP8 | {"strategy": "tensor"}),
        "float-quantized fp8 per channel, fp8 static inputs",
    ),
    "FP8 dynamic": (
        config(FP8 | {"strategy": "channel"}, FP8_TOKENS),
        "float-quantized fp8 per channel, fp8 dynamic inputs",
    ),
    "FP8 weights only": (config(FP8 | {"strategy": "channel"}), "naive-quantized fp8 per channel"),
    "INT8": (
        config({"num_bits": 8, "strategy": "channel"}, INT8_TOKENS),
        "int-quantized int8 per channel, int8 dynamic inputs",
    ),
    "INT8 static": (
        config({"num_bits": 8, "strategy": "tensor"}, {"num_bits": 8, "strategy": "tensor"}),
        "int-quantized int8 per tensor, int8 static inputs",
    ),
}
"""The package's presets and their relatives: what it is asked for, and how each linear is read."""


def require_equal(checkpoint: Checkpoint, truth: Compressed) -> None:
    """Every value, scale, zero point and weight is the package's."""
    assert checkpoint.quantized is not None
    assert set(checkpoint.quantized.linears) == set(truth.weights)
    for name, weight in truth.weights.items():
        args, decoded = truth.schemes[name].weights, checkpoint.quantized.linears[name].decode()
        stored = {k.removeprefix(f"{name}."): v for k, v in truth.stored.items() if k.startswith(f"{name}.")}
        scale = stored["weight_scale"].float()
        qweight, lifted = stored.get("weight"), 0 if args.symmetric else 8
        if qweight is None:
            qweight = unpack_from_int32(stored["weight_packed"], args.num_bits, weight.shape)
        if args.actorder == "group":
            qweight = qweight[:, stored["weight_g_idx"].argsort(stable=True)]
        assert torch.equal(decoded.qweight.float(), qweight.float() + lifted)
        columns = decoded.scale[:, None] if decoded.scale.ndim == 1 else decoded.scale
        assert torch.equal(*torch.broadcast_tensors(columns, scale))
        if not args.symmetric:
            zeros = unpack_from_int32(stored["weight_zero_point"], 4, scale.shape, packed_dim=0) + lifted
            assert torch.equal(*torch.broadcast_tensors(decoded.zero_point, zeros))
        assert torch.equal(checkpoint.read(f"{name}.weight").to(weight.dtype), weight)


@pytest.fixture
def w4a16(pristine: Path, tmp_path: Path) -> Path:
    compress(pristine, tmp_path / "w4a16", config(INT4))
    return tmp_path / "w4a16"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_values_scales_and_weights_are_the_packages(pristine, tmp_path, case, dtype):
    settings, name = CASES[case]
    truth = compress(pristine, tmp_path / "model", settings, dtype=dtype)
    checkpoint = Checkpoint.open(tmp_path / "model")
    assert {linear.layout.name for linear in checkpoint.quantized.linears.values()} == {name}
    require_equal(checkpoint, truth)


def test_static_input_scales_are_the_packages(pristine, tmp_path):
    truth = compress(pristine, tmp_path / "model", CASES["FP8"][0], largest_inputs={LINEAR: 3.0})
    linears = Checkpoint.open(tmp_path / "model").quantized.linears
    for name, linear in linears.items():
        largest = 3.0 if name == LINEAR else LARGEST_INPUT
        assert linear.decode().input_scale == truth.stored[f"{name}.input_scale"].float()
        assert float(linear.decode().input_scale) == pytest.approx(largest / 448, rel=1e-2)


@pytest.mark.parametrize("case", ["W4A16 asymmetric", "FP8 dynamic"])
def test_the_vision_tower_and_the_head_are_read_too(pristine, tmp_path, case):
    truth = compress(pristine, tmp_path / "model", CASES[case][0] | {"ignore": ["re:mlp1.1"]})
    assert {"language_model.lm_head", "mlp1.3", "vision_model.encoder.layers.0.attn.qkv"} <= set(truth.weights)
    require_equal(Checkpoint.open(tmp_path / "model"), truth)


def test_transformers_own_class_and_names_are_read(tmp_path):
    folder = synthesize(tmp_path / "source", preset="nano", layout="internvl", overrides=TINY)
    model = transformers.InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    settings = config(INT4 | {"symmetric": False}) | {"ignore": ["re:.*lm_head", "re:.*multi_modal_projector.*"]}
    truth = compress(folder, tmp_path / "model", settings, model=model)
    checkpoint = Checkpoint.open(tmp_path / "model")
    assert "vision_model.encoder.layers.0.attn.qkv" in checkpoint.quantized.linears
    layer = "encoder.layer.1.attention."
    joined = [truth.weights[f"model.vision_tower.{layer}{part}"] for part in ("q_proj", "k_proj", "v_proj")]
    qkv = checkpoint.read("vision_model.encoder.layers.1.attn.qkv.weight")
    assert torch.equal(qkv.to(torch.bfloat16), torch.cat(joined))
    down = truth.weights["model.language_model.layers.1.mlp.down_proj"]
    assert torch.equal(checkpoint.read(f"{LAYER}.mlp.down_proj.weight").to(torch.bfloat16), down)


def test_parts_of_one_linear_keep_their_scales(tmp_path):
    folder = synthesize(tmp_path / "source", preset="nano", layout="internvl", overrides=TINY)
    model = transformers.InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    settings = CASES["FP8"][0] | {"ignore": ["re:.*lm_head", "re:.*multi_modal_projector.*"]}
    truth = compress(folder, tmp_path / "model", settings, model=model)
    linear = Checkpoint.open(tmp_path / "model").quantized.linears["vision_model.encoder.layers.0.attn.qkv"]
    parts = [f"model.vision_tower.encoder.layer.0.attention.{part}_proj" for part in "qkv"]
    assert torch.equal(linear.decode().weight(), torch.cat([truth.weights[part] for part in parts]))
    scales = [truth.stored[f"{part}.weight_scale"].expand(len(truth.weights[part])) for part in parts]
    assert torch.equal(linear.decode().scale, torch.cat(scales))
    assert (linear.layout.per_tensor, linear.decode().scale.unique().numel()) == (False, 3)


def test_names_in_the_configuration_may_have_the_prefixes_of_another_version(tmp_path):
    folder = synthesize(tmp_path / "source", preset="nano", layout="internvl", overrides=TINY)
    model = transformers.InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    weights = INT4 | {"symmetric": False}
    group = {"targets": [r"re:model\.language_model\..*down_proj"], "weights": weights}
    compress(folder, tmp_path / "model", {"config_groups": {"a": group}}, model=model)
    expected = set(Checkpoint.open(tmp_path / "model").quantized.linears)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            for today, older in (
                ("model.language_model.", "language_model.model."),
                ("lm_head.", "language_model.lm_head."),
            ):
                if name.startswith(today):
                    tensors[older + name.removeprefix(today)] = tensors.pop(name)
            for today in ("model.vision_tower.", "model.multi_modal_projector."):
                if name.startswith(today):
                    tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(tmp_path / "model" / WEIGHTS, rename)
    assert set(Checkpoint.open(tmp_path / "model").quantized.linears) == expected


def test_of_a_name_a_pattern_and_a_class_the_package_takes_the_same_as_we(pristine, tmp_path):
    groups = {
        "by class": {"targets": ["Linear"], "weights": INT4},
        "by pattern": {
            "targets": [r"re:.*self_attn\.[qkvo]_proj", r"re:.*\.0\.mlp\..*_proj"],
            "weights": {"num_bits": 8, "strategy": "channel"},
        },
        "by name": {"targets": [f"{LAYER}.self_attn.q_proj", LINEAR], "weights": FP8 | {"strategy": "channel"}},
        "by a later pattern": {"targets": ["re:.*gate_proj", "re:.*down"], "weights": FP8 | {"strategy": "tensor"}},
    }
    ignored = [*LANGUAGE_ONLY, f"{LAYER}.self_attn.o_proj"]
    truth = compress(pristine, tmp_path / "model", {"config_groups": groups, "ignore": ignored})
    written = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]
    assert written["format"] == "mixed-precision"
    checkpoint = Checkpoint.open(tmp_path / "model")
    require_equal(checkpoint, truth)
    types = {name: linear.layout.name for name, linear in checkpoint.quantized.linears.items()}
    assert types[LINEAR].startswith("naive-quantized fp8 per channel")
    assert f"{LAYER}.self_attn.o_proj" not in types
    assert len(set(types.values())) == 4


@pytest.mark.parametrize("names", [("k_scale", "v_scale"), ("k_proj.output_scale", "v_proj.output_scale")])
def test_scales_of_an_fp8_cache_are_read_under_both_of_their_names(pristine, tmp_path, names):
    truth = compress(pristine, tmp_path / "model", config(INT4, kv_cache_scheme=FP8_CACHE))

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(2):
            attention = f"language_model.model.layers.{layer}.self_attn"
            for today, name in zip(("k_scale", "v_scale"), names, strict=True):
                tensors[f"{attention}.{name}"] = tensors.pop(f"{attention}.{today}")

    edit_tensors(tmp_path / "model" / WEIGHTS, rename)
    pairs = Checkpoint.open(tmp_path / "model").quantized.cache_scales
    assert len(pairs) == 2
    for layer, pair in enumerate(pairs):
        for stored, name in zip(pair, ("k_scale", "v_scale"), strict=True):
            assert torch.equal(stored.read(), truth.stored[f"language_model.model.layers.{layer}.self_attn.{name}"])


def test_a_missing_scale_of_the_cache_is_named(pristine, tmp_path):
    compress(pristine, tmp_path / "model", config(INT4, kv_cache_scheme=FP8_CACHE))
    edit_tensors(tmp_path / "model" / WEIGHTS, lambda tensors: tensors.pop(f"{LAYER}.self_attn.v_scale"))
    error = refusal(tmp_path / "model")
    assert error.expected == f"{LAYER}.self_attn.v_scale"


REFUSED = {
    "nvfp4": ("format", "nvfp4-pack-quantized", "nvfp4-pack-quantized"),
    "mxfp4": ("format", "mxfp4-pack-quantized", "mxfp4-pack-quantized"),
    "marlin": ("format", "marlin-24", "marlin-24"),
    "sparse": ("sparsity_config", {"format": "sparse-24-bitmask", "targets": ["Linear"]}, "sparse-24-bitmask"),
    "transforms": ("transform_config", {"config_groups": {"R1": {"type": "hadamard"}}}, "R1"),
    "no groups": ("config_groups", {}, "{}"),
    "a preset by its name": ("config_groups", {"W4A16": ["Linear"]}, "Linear"),
    "an INT8 cache": ("kv_cache_scheme", FP8_CACHE | {"type": "int"}, "8 bits of type int"),
    "a cache per head": ("kv_cache_scheme", FP8_CACHE | {"strategy": "attn_head"}, "attn_head"),
    "a pattern that is none": ("ignore", ["re:*("], "re:*("),
    "an entry that is no name": ("ignore", [7], "7"),
    "an ignored linear": ("ignore", ["re:.*gate_proj"], "re:.*gate_proj"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_cause(w4a16, case):
    key, value, named = REFUSED[case]
    if key == "format":
        set_key(w4a16, "quantization_config.config_groups.group_0.format", ...)
    set_key(w4a16, f"quantization_config.{key}", value)
    error = refusal(w4a16)
    assert named in str(error.found)
    assert f"quantization_config: {key}" in str(error.where)


REFUSED_IN_GROUPS = {
    "weights.strategy": ("block", "block"),
    "weights.num_bits": (3, "3 bits of type int"),
    "weights.type": ("float", "4 bits of type float"),
    "weights.dynamic": (True, "true"),
    "weights.actorder": ("random", "random"),
    "weights.rotation": ("hadamard", "hadamard"),
    "weights.group_size": (0, "0"),
    "weights": (None, "nothing"),
    "input_activations": (INT8_TOKENS, "8 bits of type int"),
    "output_activations": (FP8_CACHE, "float"),
    "format": ("mxfp4-pack-quantized", "mxfp4-pack-quantized"),
    "targets": ("Linear", "Linear"),
}


@pytest.mark.parametrize("key", REFUSED_IN_GROUPS)
def test_groups_that_are_not_supported_are_refused_with_their_cause(w4a16, key):
    value, named = REFUSED_IN_GROUPS[key]
    set_key(w4a16, f"quantization_config.config_groups.group_0.{key}", value)
    error = refusal(w4a16)
    assert named in str(error.found)
    assert "config.json: quantization_config: config_groups: group_0" in str(error.where)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"symmetric": False}, "false"),
        ({"dynamic": "local"}, "local"),
        ({"strategy": "tensor"}, "tensor"),
        ({"num_bits": 4}, "4 bits of type int"),
    ],
)
def test_inputs_that_are_quantized_in_other_ways_are_refused(pristine, tmp_path, changed, named):
    compress(pristine, tmp_path / "model", CASES["INT8"][0])
    for key, value in changed.items():
        set_key(tmp_path / "model", f"quantization_config.config_groups.group_0.input_activations.{key}", value)
    error = refusal(tmp_path / "model")
    assert named in str(error.found)
    assert "input_activations" in str(error.where)


def test_8_bits_with_zero_points_are_refused(pristine, tmp_path):
    compress(pristine, tmp_path / "model", config(INT4 | {"num_bits": 8, "symmetric": False}))
    assert "8 bits of type int with zero points" in refusal(tmp_path / "model").found


def test_weights_in_blocks_are_refused(pristine, tmp_path):
    compress(pristine, tmp_path / "source", config(FP8 | {"strategy": "channel"}, FP8_TOKENS))
    key = "quantization_config.config_groups.group_0.weights"
    set_key(tmp_path / "source", f"{key}.strategy", "block")
    set_key(tmp_path / "source", f"{key}.block_structure", [128, 128])
    assert "block" in refusal(tmp_path / "source").found


def test_scales_next_to_weights_in_16_bits_are_refused(w4a16):
    def decompress(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LINEAR}.weight"] = torch.zeros(96, 64, dtype=torch.bfloat16)

    edit_tensors(w4a16 / WEIGHTS, decompress)
    assert refusal(w4a16).what == "A linear is stored both quantized and unquantized."


def test_a_linear_that_no_group_targets_is_refused(w4a16):
    set_key(w4a16, "quantization_config.config_groups.group_0.targets", ["re:.*mlp.*"])
    error = refusal(w4a16)
    assert "self_attn.q_proj" in error.expected


def test_missing_tensors_of_a_linear_are_named(w4a16):
    edit_tensors(w4a16 / WEIGHTS, lambda tensors: tensors.pop(f"{LINEAR}.weight_packed"))
    assert refusal(w4a16).expected == f"{LINEAR}.weight_packed"


def test_a_weight_shape_of_another_linear_is_refused_when_it_is_read(w4a16):
    edit_tensors(w4a16 / WEIGHTS, lambda tensors: tensors[f"{LINEAR}.weight_shape"].copy_(torch.tensor([64, 96])))
    with pytest.raises(CheckpointError, match=r"weight_shape of \[64, 96\]"):
        Checkpoint.open(w4a16).read(f"{LINEAR}.weight")


def test_groups_of_unequal_size_are_refused(pristine, tmp_path):
    compress(pristine, tmp_path / "model", CASES["W4A16 act-order"][0])
    edit_tensors(tmp_path / "model" / WEIGHTS, lambda tensors: tensors[f"{LINEAR}.weight_g_idx"].fill_(0))
    error = refusal(tmp_path / "model")
    assert error.what == "Groups of inputs that are not of one size are not supported."
    assert f"{LINEAR}.weight_g_idx" in error.where


def test_an_order_that_was_never_set_is_no_order(pristine, tmp_path):
    truth = compress(pristine, tmp_path / "model", CASES["W4A16"][0])

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for name in truth.weights:  # as the package initializes it
            tensors[f"{name}.weight_g_idx"] = torch.full((truth.weights[name].shape[1],), -1, dtype=torch.int32)

    edit_tensors(tmp_path / "model" / WEIGHTS, add)
    set_key(tmp_path / "model", "quantization_config.config_groups.group_0.weights.actorder", "group")
    require_equal(Checkpoint.open(tmp_path / "model"), truth)


def test_keys_of_later_versions_are_refused_unless_they_are_null(w4a16):
    weights = "quantization_config.config_groups.group_0.weights"
    set_key(w4a16, f"{weights}.rotation", None)
    assert len(Checkpoint.open(w4a16).quantized.linears) == 14
    set_key(w4a16, f"{weights}.rotation", "hadamard")
    assert refusal(w4a16).where.endswith("weights: rotation")


def test_configurations_of_older_versions_without_strategy_and_version_are_read(pristine, tmp_path):
    truth = compress(pristine, tmp_path / "model", CASES["W4A16"][0])

    def age(content: dict[str, Any]) -> None:
        quantization = content["quantization_config"]
        for key in ("version", "sparsity_config", "transform_config"):
            del quantization[key]
        group = quantization["config_groups"]["group_0"]
        del group["format"], group["weights"]["strategy"], group["weights"]["scale_dtype"]
        quantization["quantization_status"] = "frozen"

    edit_json(tmp_path / "model" / "config.json", age)
    require_equal(Checkpoint.open(tmp_path / "model"), truth)


def test_a_quantized_embedding_is_refused(w4a16):
    def quantize(tensors: dict[str, torch.Tensor]) -> None:
        tensors["language_model.model.embed_tokens.weight_scale"] = torch.ones(1)

    edit_tensors(w4a16 / WEIGHTS, quantize)
    assert refusal(w4a16).what == "A quantized token embedding is not supported."
