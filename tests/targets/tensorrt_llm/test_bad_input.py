"""What cannot be stored or read is refused by name, and never half-done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.errors import BundleError, CheckpointError, UsageError
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import Mapping, check_mapping
from r1v_export.targets.tensorrt_llm.checkpoint.reader import read_checkpoint
from r1v_export.targets.tensorrt_llm.checkpoint.writer import write_checkpoint
from r1v_export.targets.tensorrt_llm.runtime.engine import load_language_model
from tests.quantization.calibration_cases import with_weights
from tests.targets.tensorrt_llm.cases import SCHEMES, make_artifact, of, recipe

LAYER = "transformer.layers.0"


@pytest.fixture
def small(synth_checkpoint, tmp_path) -> Callable[..., Path]:
    """Writes the small model (4 heads, 2 key-value heads) in a format."""

    def write(scheme: str | None = None, parallel: Mapping | None = None, *rules: str, kv_cache: str = "null") -> Path:
        artifact = None
        if scheme or rules:
            wanted = recipe(*rules) if rules else of(scheme, kv_cache)
            artifact = make_artifact(synth_checkpoint, wanted, tmp_path / "artifact")
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        write_checkpoint(synth_checkpoint, artifact, folder, torch.bfloat16, parallel=parallel)
        return folder

    return write


def change(folder: Path, changes: dict[str, torch.Tensor | None], rank: int = 0) -> None:
    """Replace (or with None remove) tensors of a rank's file."""
    path = folder / f"rank{rank}.safetensors"
    tensors = load_file(path) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [
        (Mapping(4), r"4 GPUs cannot share this model's key-value heads evenly[\s\S]*--tp 2"),
        (Mapping(8), r"8 GPUs cannot share this model's attention heads evenly[\s\S]*a divisor of 4"),
        (Mapping(1, 3), r"more pipeline stages than layers[\s\S]*at most 2"),
    ],
)
def test_gpus_that_cannot_share_the_model(small, parallel, expected):
    with pytest.raises(UsageError, match=expected):
        small(None, parallel)


def test_gpus_that_cannot_share_the_mlp(wide):
    spec = wide.spec.language.model_copy(update={"intermediate_size": 1026})

    with pytest.raises(UsageError, match=r"8 GPUs cannot share this model's intermediate features[\s\S]*--tp 2"):
        check_mapping(spec, {}, Mapping(8))


def test_a_group_across_two_gpus(tmp_path):
    sizes = {"llm_config.num_attention_heads": 8, "llm_config.num_key_value_heads": 8, "llm_config.hidden_size": 256}
    checkpoint = Checkpoint.open(
        synthesize(tmp_path / "model", preset="nano", vision_layers=1, language_layers=1, overrides=sizes)
    )
    artifact = make_artifact(checkpoint, of("int4"), tmp_path / "artifact")

    with pytest.raises(
        UsageError, match=r"group would be split across two GPUs[\s\S]*whole groups of 64[\s\S]*32 of 256"
    ):
        write_checkpoint(checkpoint, artifact, tmp_path / "a", torch.bfloat16, parallel=Mapping(8))


def test_kernels_that_would_need_padding(tmp_path):
    sizes = {"llm_config.num_attention_heads": 16}
    checkpoint = Checkpoint.open(
        synthesize(tmp_path / "model", preset="nano", vision_layers=1, language_layers=1, overrides=sizes)
    )
    artifact = make_artifact(checkpoint, of("int4"), tmp_path / "artifact")

    with pytest.raises(UsageError, match=r"need padding[\s\S]*qkv with tp 2[\s\S]*multiples of 128[\s\S]*320 and 256"):
        write_checkpoint(checkpoint, artifact, tmp_path / "a", torch.bfloat16, parallel=Mapping(2))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (
            (
                "language_model.*: {weights: {type: fp8, granularity: channel, algorithm: rtn}, "
                "inputs: {type: fp8, mode: static}}",
            ),
            r"no format for this quantization[\s\S]*fp8 channel \+ fp8 static[\s\S]*fp8-tensor",
        ),
        (
            (
                "language_model.*: {weights: {type: int8, granularity: channel, algorithm: rtn}, "
                "inputs: {type: int8, mode: dynamic}}",
            ),
            r"no format for this quantization[\s\S]*int8 channel \+ int8 dynamic",
        ),
        (
            (f"language_model.*: {SCHEMES['fp8']}", "*.self_attn.k_proj: null"),
            r"one product are quantized in different ways[\s\S]*q_proj[\s\S]*FP8, 16 bits, FP8",
        ),
        (
            (f"language_model.*: {SCHEMES['fp8']}", f"*.mlp.up_proj: {SCHEMES['int4']}"),
            r"one product are quantized in different ways[\s\S]*gate_proj[\s\S]*FP8, W4A16_AWQ",
        ),
        (
            (f"language_model.lm_head: {SCHEMES['fp8']}",),
            r"keeps the language-model head in 16 bits",
        ),
        (
            (f"language_model.*: {SCHEMES['fp8-rowwise']}", "*.mlp.down_proj: null"),
            r"for all linears of the language model or for none",
        ),
    ],
    ids=["fp8 per channel", "int8 dynamic", "q/k/v differ", "gate/up differ", "head", "half row-wise"],
)
def test_a_quantization_that_tensorrt_llm_does_not_have(small, rules, expected):
    with pytest.raises(UsageError, match=expected):
        small(None, None, *rules)


def test_stages_that_are_quantized_differently(small):
    rules = (f"language_model.*: {SCHEMES['fp8']}", "language_model.model.layers.1.*: null")

    with pytest.raises(UsageError, match=r"stages of one checkpoint must be quantized alike[\s\S]*layers 0 and 1"):
        small(None, Mapping(1, 2), *rules)


def test_another_model_s_calibration(synth_checkpoint, wide, tmp_path):
    make_artifact(wide, of("fp8"), tmp_path / "artifact")

    with pytest.raises(BundleError, match="calibration of another checkpoint"):
        Artifact.open(tmp_path / "artifact", synth_checkpoint)


def test_a_calibration_with_a_nan_scale(synth_checkpoint, tmp_path):
    make_artifact(synth_checkpoint, of("fp8"), tmp_path / "artifact")
    scales = load_file(tmp_path / "artifact" / "scales.safetensors")
    name = "language_model.model.layers.0.mlp.gate_proj.weight_scale"
    save_file(scales | {name: scales[name] * float("nan")}, tmp_path / "artifact" / "scales.safetensors")

    with pytest.raises(BundleError, match=r"gate_proj is damaged[\s\S]*not a positive, finite number"):
        Artifact.open(tmp_path / "artifact", synth_checkpoint)


def test_a_calibration_without_a_scale(synth_checkpoint, tmp_path):
    make_artifact(synth_checkpoint, of("fp8"), tmp_path / "artifact")
    scales = load_file(tmp_path / "artifact" / "scales.safetensors")
    del scales["language_model.model.layers.0.mlp.gate_proj.input_scale"]
    save_file(scales, tmp_path / "artifact" / "scales.safetensors")

    with pytest.raises(BundleError, match=r"lacks tensors[\s\S]*gate_proj.input_scale"):
        Artifact.open(tmp_path / "artifact", synth_checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_weight_that_the_engine_s_dtype_cannot_hold(synth_checkpoint, tmp_path, value):
    name = "language_model.model.layers.1.self_attn.q_proj.bias"
    checkpoint = with_weights(synth_checkpoint, tmp_path / "changed", {name: value})
    (tmp_path / "a").mkdir()

    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.bias"):
        write_checkpoint(checkpoint, None, tmp_path / "a", torch.float16)


def test_a_missing_rank_is_named(small):
    folder = small(None, Mapping(2))
    (folder / "rank1.safetensors").unlink()

    with pytest.raises(BundleError, match=r"rank1\.safetensors"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("scheme", "suffix", "expected"),
    [
        ("fp8", "weights_scaling_factor", "no weights_scaling_factor"),
        ("fp8", "activation_scaling_factor", "no activation_scaling_factor"),
        ("int4", "prequant_scaling_factor", "no prequant_scaling_factor"),
        ("fp8-rowwise", "per_channel_scale", "no per_channel_scale"),
    ],
)
def test_a_missing_scale_is_named(small, scheme, suffix, expected):
    folder = small(scheme)
    change(folder, {f"{LAYER}.mlp.fc.{suffix}": None})

    with pytest.raises(BundleError, match=rf"mlp\.fc[\s\S]*{expected}"):
        read_checkpoint(folder)


def test_a_linear_in_16_bits_that_also_has_scales(small):
    folder = small("int4")
    config = json.loads((folder / "config.json").read_text())
    config["quantization"]["exclude_modules"].append(f"{LAYER}.mlp.fc")
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(BundleError, match=r"not quantized[\s\S]*also prequant_scaling_factor"):
        read_checkpoint(folder)


def test_a_quantized_linear_that_lies_in_16_bits(small):
    folder = small("int4")
    change(folder, {f"{LAYER}.mlp.fc.weight": torch.zeros(512, 256, dtype=torch.bfloat16)})

    with pytest.raises(BundleError, match=r"mlp\.fc"):
        read_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0, float("inf")])
def test_a_scale_that_is_no_scale(small, value):
    folder = small("fp8")
    change(folder, {f"{LAYER}.attention.dense.weights_scaling_factor": torch.tensor([value])})

    with pytest.raises(BundleError, match=r"attention\.dense[\s\S]*not a positive, finite number"):
        read_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0, float("inf")])
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_cache_scale_that_is_no_scale(small, kind, value):
    folder = small(kind, kv_cache=kind)
    change(folder, {f"{LAYER}.attention.kv_cache_scaling_factor": torch.tensor([value])})

    with pytest.raises(BundleError, match=r"kv_cache_scaling_factor[\s\S]*a positive, finite scale"):
        read_checkpoint(folder)


def test_a_missing_cache_scale_is_named(small):
    folder = small("int8", kv_cache="int8")
    change(folder, {f"{LAYER}.attention.kv_cache_scaling_factor": None})

    with pytest.raises(BundleError, match=r"rank0[\s\S]*attention\.kv_cache_scaling_factor[\s\S]*no such tensor"):
        read_checkpoint(folder)


def test_gpus_that_disagree_about_a_cache(small):
    folder = small("int8", Mapping(2), kv_cache="int8")
    change(folder, {f"{LAYER}.attention.kv_cache_scaling_factor": torch.tensor([0.5])}, rank=1)

    with pytest.raises(BundleError, match=r"kv_cache_scaling_factor[\s\S]*the same numbers on every GPU"):
        read_checkpoint(folder)


def test_a_cache_of_an_unknown_type(small):
    folder = small("int8", kv_cache="int8")
    config = json.loads((folder / "config.json").read_text())
    config["quantization"]["kv_cache_quant_algo"] = "INT3"
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(BundleError, match=r"kv_cache_quant_algo[\s\S]*'FP8' or 'INT8'"):
        read_checkpoint(folder)


def test_an_unknown_algorithm(small):
    folder = small("fp8")
    config = json.loads((folder / "config.json").read_text())
    config["quantization"]["quant_algo"] = "W3A5_MAGIC"
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(BundleError, match=r"not known[\s\S]*W4A16_AWQ[\s\S]*W3A5_MAGIC"):
        read_checkpoint(folder)


def test_gpus_that_disagree(small):
    folder = small("fp8", Mapping(2))
    change(folder, {f"{LAYER}.mlp.proj.weights_scaling_factor": torch.tensor([0.5])}, rank=1)

    with pytest.raises(BundleError, match=r"disagree[\s\S]*mlp\.proj"):
        read_checkpoint(folder)


def test_a_norm_that_differs_between_gpus(small):
    folder = small(None, Mapping(2))
    change(folder, {"transformer.ln_f.weight": torch.zeros(256, dtype=torch.bfloat16)}, rank=1)

    with pytest.raises(BundleError, match=r"ln_f[\s\S]*the same numbers on every GPU"):
        read_checkpoint(folder)


@pytest.mark.parametrize("field", ["rotary_base", "qwen_type", "norm_epsilon", "mapping"])
def test_a_config_that_leaves_something_to_the_library(small, field):
    folder = small()
    config = json.loads((folder / "config.json").read_text())
    del config[field]
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(BundleError, match=field):
        read_checkpoint(folder)


def test_the_checkpoint_of_another_model(small, wide):
    with pytest.raises(BundleError, match=r"another model[\s\S]*hidden_size 1024[\s\S]*hidden_size 256"):
        load_language_model(small(), wide.spec)


def test_a_truncated_rank(small):
    path = small() / "rank0.safetensors"
    shutil.copy(path, path.with_suffix(".copy"))
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(BundleError, match=r"rank0\.safetensors"):
        read_checkpoint(path.parent)
