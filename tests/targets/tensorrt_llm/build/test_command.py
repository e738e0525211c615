"""The command that builds an engine, and how its run is watched; a script stands in for `trtllm-build`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.errors import BundleError, CapabilityError, GraphError, UsageError
from r1v_export.progress import ignore_progress
from r1v_export.targets.tensorrt_llm.build import trtllm_build
from r1v_export.targets.tensorrt_llm.build.command import (
    EngineSizes,
    build_arguments,
    container_recipe,
    engine_sizes,
    visual_tokens,
)
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import Mapping
from r1v_export.targets.tensorrt_llm.checkpoint.reader import Config, read_config
from r1v_export.targets.tensorrt_llm.checkpoint.writer import write_checkpoint
from r1v_export.targets.tensorrt_llm.config import TensorRTLLMConfig

SIZES = EngineSizes(2, 512, 1024, 2048, 640)

STAND_IN = """#!{python}
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = pathlib.Path(flags["--output_dir"])
config = json.loads((pathlib.Path(flags["--checkpoint_dir"]) / "config.json").read_text())
for rank in range(config["mapping"]["world_size"]):
    print("[TRT-LLM] [I] Total time of constructing network from module object 3.1 seconds", flush=True)
    print("[TRT-LLM] [I] Total time of building Unnamed Network 0: 00:00:12", flush=True)
    (out / f"rank{{rank}}.engine").write_bytes(b"plan")
    print("[TRT-LLM] [I] Engine serialized. Total time: 00:00:01", flush=True)
print("[TRT-LLM] [I] Total time of building all engines: 00:00:40")
{more}
sizes = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
build = {{name: int(flags["--" + name]) for name in sizes}}
build["max_prompt_embedding_table_size"] = int(flags["--max_multimodal_len"])
(out / "config.json").write_text(json.dumps({{"pretrained_config": config, "build_config": build}}))
"""


@pytest.fixture
def checkpoint(wide, quantized, tmp_path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_checkpoint(wide, quantized("fp8-kv"), folder, torch.bfloat16, parallel=Mapping(2, 2))
    return folder


@pytest.fixture
def program(tmp_path) -> Path:
    return stand_in(tmp_path / "environment", "1.2.0")


def stand_in(environment: Path, version: str, more: str = "") -> Path:
    """A folder with a `trtllm-build`, and a `python` that knows of that version of TensorRT-LLM."""
    environment.mkdir()
    for name, text in {
        "trtllm-build": STAND_IN.format(python=sys.executable, more=more),
        "python": f"#!/bin/sh\necho {version}\n",
    }.items():
        (environment / name).write_text(text)
        (environment / name).chmod(0o755)
    return environment / "trtllm-build"


def flags_of(arguments: list[str]) -> dict[str, str]:
    return dict(zip(arguments[1::2], arguments[2::2], strict=True))


def test_every_size_and_mode_is_said(checkpoint, tmp_path):
    arguments = build_arguments(checkpoint, tmp_path / "engine", read_config(checkpoint), SIZES, workers=4)

    assert arguments[0] == "trtllm-build"
    assert flags_of(arguments) == {
        "--checkpoint_dir": str(checkpoint),
        "--output_dir": str(tmp_path / "engine"),
        "--workers": "4",
        "--max_batch_size": "2",
        "--max_input_len": "512",
        "--max_seq_len": "1024",
        "--max_num_tokens": "2048",
        "--max_beam_width": "1",
        "--max_multimodal_len": "640",
        "--kv_cache_type": "paged",
        "--remove_input_padding": "enable",
        "--gpt_attention_plugin": "bfloat16",
        "--context_fmha": "enable",
        "--use_paged_context_fmha": "enable",
        "--use_fp8_context_fmha": "enable",
        "--gemm_plugin": "disable",
        "--logits_dtype": "float32",
        "--profiling_verbosity": "layer_names_only",
        "--output_timing_cache": str(tmp_path / "engine" / "timing.cache"),
        "--log_level": "info",
    }


@pytest.mark.parametrize(
    ("algorithm", "cache", "paged", "fp8"),
    [
        (None, None, "enable", "disable"),
        ("FP8", None, "enable", "disable"),
        ("FP8", "FP8", "enable", "enable"),
        ("W4A16_AWQ", "FP8", "disable", "disable"),
        ("FP8", "INT8", "disable", "disable"),
        ("MIXED_PRECISION", "FP8", "disable", "disable"),
    ],
)
def test_fp8_attention_only_where_cache_and_projections_are_fp8(checkpoint, algorithm, cache, paged, fp8):
    config = read_config(checkpoint)
    quantization = config.quantization.model_copy(update={"quant_algo": algorithm, "kv_cache_quant_algo": cache})

    flags = flags_of(build_arguments(checkpoint, Path("/e"), _with(config, quantization), SIZES, workers=1))

    assert (flags["--use_paged_context_fmha"], flags["--use_fp8_context_fmha"]) == (paged, fp8)


def test_float32_has_no_fused_attention(checkpoint):
    config = read_config(checkpoint).model_copy(update={"dtype": "float32"})

    flags = flags_of(build_arguments(checkpoint, Path("/e"), config, SIZES, workers=1))

    assert (flags["--context_fmha"], flags["--use_paged_context_fmha"]) == ("disable", "disable")


def _with(config: Config, quantization: object) -> Config:
    return config.model_copy(update={"quantization": quantization})


def test_r1v_s_image_takes_up_to_3328_rows_of_the_table(tmp_path):
    spec = Checkpoint.open(
        synthesize(tmp_path / "38b", preset="r1v3-38b", vision_layers=1, language_layers=1, weights="empty")
    ).spec

    sizes = engine_sizes(TensorRTLLMConfig(max_batch_size=8), spec)

    assert visual_tokens(spec) == 3328
    assert sizes.max_multimodal_len == 8 * 3328


def test_sizes_beyond_the_model_s_positions_are_cut(wide):
    sizes = engine_sizes(TensorRTLLMConfig(max_input_len=100_000, max_seq_len=200_000), wide.spec)

    positions = wide.spec.language.max_position_embeddings
    assert (sizes.max_seq_len, sizes.max_input_len) == (positions, positions - 1)


def test_images_that_do_not_fit_into_the_prompt_are_refused(wide):
    with pytest.raises(UsageError, match="raise max_input_len") as raised:
        engine_sizes(TensorRTLLMConfig(max_input_len=100, images_per_request=3), wide.spec)

    assert raised.value.found == 100


def test_the_container_gets_the_same_command_with_its_own_paths(checkpoint, tmp_path):
    arguments = build_arguments(checkpoint, tmp_path / "engine", read_config(checkpoint), SIZES, workers=1)

    recipe = container_recipe(tmp_path, tmp_path / "engine", arguments)

    assert "--checkpoint_dir /bundle/checkpoint" in recipe
    assert "--output_dir /engine" in recipe
    assert "--output_timing_cache /engine/timing.cache" in recipe
    assert f"-v {tmp_path}:/bundle:ro" in recipe


def test_a_run_is_reported_in_percent_and_its_engine_is_encoded(checkpoint, program, tmp_path):
    out, config = tmp_path / "engine", read_config(checkpoint)
    out.mkdir()
    reported: list[float] = []

    arguments = build_arguments(checkpoint, out, config, SIZES, workers=4)
    trtllm_build.run(
        trtllm_build.find_program(program, ""), arguments, 4, lambda done, total: reported.append(done / total)
    )
    trtllm_build.check_engine(out, config, SIZES)

    assert reported == sorted(reported)
    assert reported[-1] == 1.0
    assert len(reported) == 12


def test_a_failed_run_shows_the_end_of_its_log(checkpoint, tmp_path):
    program = stand_in(tmp_path / "environment", "1.1.0", more="print('out of memory'); sys.exit(7)")
    (tmp_path / "engine").mkdir()
    arguments = build_arguments(checkpoint, tmp_path / "engine", read_config(checkpoint), SIZES, workers=1)

    with pytest.raises(GraphError, match=r"exit code 7[\s\S]*out of memory"):
        trtllm_build.run(program, arguments, 4, ignore_progress)


@pytest.mark.parametrize("version", ["0.21.0", "1.3.0rc20", "2.0.0", ""])
def test_another_version_is_a_missing_capability(tmp_path, version):
    program = stand_in(tmp_path / "environment", version)

    with pytest.raises(CapabilityError, match=r"1\.0, 1\.1 or 1\.2[\s\S]*RECIPE"):
        trtllm_build.find_program(program, "RECIPE")


def test_no_program_is_a_missing_capability_with_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CapabilityError, match="RECIPE") as raised:
        trtllm_build.find_program(None, "RECIPE")

    assert raised.value.exit_code == 4


def test_an_engine_of_other_sizes_is_named(checkpoint, program, tmp_path):
    out, config = tmp_path / "engine", read_config(checkpoint)
    out.mkdir()
    trtllm_build.run(program, build_arguments(checkpoint, out, config, SIZES, workers=1), 4, ignore_progress)
    (out / "rank3.engine").unlink()

    asked = EngineSizes(2, 512, 4096, 2048, 640)
    with pytest.raises(BundleError, match=r"max_seq_len 4096, rank3.engine[\s\S]*max_seq_len 1024, no rank3.engine"):
        trtllm_build.check_engine(out, config, asked)


def test_an_engine_without_a_config_is_named(checkpoint, tmp_path):
    with pytest.raises(
        BundleError, match=r"(?s)config cannot be read.*found:    No such file.*r1v-export engine BUNDLE"
    ):
        trtllm_build.check_engine(tmp_path, read_config(checkpoint), SIZES)
