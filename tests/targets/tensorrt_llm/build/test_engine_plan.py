"""The target tensorrt-llm end to end: build with its gate, the engine's command, and a gate that notices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from r1v_export.bundle import Bundle
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.cli.main import run
from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.errors import UsageError
from r1v_export.manifest import PASSED
from r1v_export.parity.comparison import check
from r1v_export.pipeline.build import build
from r1v_export.pipeline.calibration import open_artifact
from r1v_export.pipeline.parity_gate import GeneratedQuestions, candidate_endpoint, check_options, reference_endpoint
from r1v_export.targets.tensorrt_llm.build.engine_plan import plan_engine

CHECKPOINT = "engines/tensorrt-llm/checkpoint"


@pytest.fixture(scope="module")
def bundle(tiny_config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config.model_copy(
        update={
            "precision": "fp8",
            "targets": {"tensorrt-llm": {"tp": 2, "max_batch_size": 3, "max_input_len": 1000}},
            "calibration": CalibrationConfig(samples=2),
            "parity": ParityConfig(questions=1, max_new_tokens=4),
        }
    )
    return build(config, tmp_path_factory.mktemp("trtllm") / "bundle").out


def test_a_build_ends_with_the_checkpoint_proved(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest

    assert manifest.parity == {"tensorrt-llm": PASSED}
    assert {path for path in manifest.files if path.startswith("engines/")} == {
        f"{CHECKPOINT}/{name}" for name in ("config.json", "rank0.safetensors", "rank1.safetensors")
    }
    assert not any("decoder" in path for path in manifest.files)
    # fp8 means one scale for a weight here.
    assert json.loads((bundle / CHECKPOINT / "config.json").read_text())["quantization"]["quant_algo"] == "FP8"


def test_an_int8_cache_passes_the_gate(tiny_config: BuildConfig, tmp_path: Path) -> None:
    changes = {
        "precision": "int8",
        "recipe": "int8-kv",
        "targets": {"tensorrt-llm": {}},
        "calibration": CalibrationConfig(samples=2),
        "parity": ParityConfig(questions=1, max_new_tokens=4),
    }
    built = build(tiny_config.model_copy(update=changes), tmp_path / "out")

    assert built.manifest.parity == {"tensorrt-llm": PASSED}
    config = json.loads((built.out / CHECKPOINT / "config.json").read_text())["quantization"]
    assert (config["quant_algo"], config["kv_cache_quant_algo"]) == ("W8A8_SQ_PER_CHANNEL", "INT8")


def test_the_gate_notices_one_wrong_scale(bundle: Path, tiny_model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    for rank in range(2):
        path = broken / CHECKPOINT / f"rank{rank}.safetensors"
        tensors = load_file(path)
        tensors["transformer.layers.0.mlp.proj.weights_scaling_factor"] *= 1.5
        save_file(tensors, path)
    checkpoint = Checkpoint.open(tiny_model)
    artifact = open_artifact(broken, checkpoint)
    reference = reference_endpoint(checkpoint, "cpu", artifact)

    options = check_options(Bundle.open(broken).config, "tensorrt-llm", checkpoint.spec, artifact, max_new_tokens=2)
    candidate = candidate_endpoint(broken, "tensorrt-llm", "cpu")
    samples = GeneratedQuestions(checkpoint, 1)
    report = check(reference, candidate, samples, options)

    assert not report.passed
    assert report.first_bad in ("prefill", "decode")


def test_the_engine_s_command_follows_from_the_build(bundle: Path, tmp_path: Path, capsys) -> None:
    assert run(["engine", str(bundle), "-o", str(tmp_path / "engine"), "--print-command", "--format", "json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    command = printed["command"]
    assert command[0] == "trtllm-build"
    flags = dict(zip(command[1::2], command[2::2], strict=True))
    assert (flags["--max_batch_size"], flags["--max_input_len"], flags["--workers"]) == ("3", "1000", "2")
    assert flags["--checkpoint_dir"] == str(bundle / CHECKPOINT)
    assert "docker run" in printed["container"]
    assert not (tmp_path / "engine").exists()


def test_without_trtllm_build_the_exit_code_is_4_and_the_recipe_is_reported(
    bundle: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert run(["engine", str(bundle), "-o", str(tmp_path / "engine")]) == 4
    assert "docker run" in capsys.readouterr().err


def test_a_folder_that_is_not_empty_is_refused_before_trtllm_build_is_looked_for(
    bundle: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert run(["engine", str(bundle), "-o", str(bundle)]) == 2
    assert "The output folder is not empty." in capsys.readouterr().err


def test_a_bundle_without_a_checkpoint_has_no_engine(tiny_built: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such target in the bundle[\s\S]*found: +tensorrt-llm"):
        plan_engine(tiny_built, tmp_path)


def test_gpus_that_cannot_share_the_model_are_refused_before_any_work(tiny_config: BuildConfig, tmp_path: Path) -> None:
    changes = {"precision": "fp8", "targets": {"tensorrt-llm": {"tp": 8}}}

    with pytest.raises(UsageError, match="8 GPUs cannot share"):
        build(tiny_config.model_copy(update=changes), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_recipe_that_tensorrt_llm_has_no_format_for_is_refused_before_any_work(
    tiny_config: BuildConfig, tmp_path: Path
) -> None:
    changes = {"precision": "fp8", "recipe": "fp8", "targets": {"tensorrt-llm": {}}}

    with pytest.raises(UsageError, match="fp8-tensor"):
        build(tiny_config.model_copy(update=changes), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_program_that_is_not_there_is_named_and_not_trtllm_build_in_its_place(
    bundle: Path, tmp_path: Path, capsys
) -> None:
    for program, found in ((tmp_path / "none", "no such file"), (tmp_path, "a folder")):
        assert run(["engine", str(bundle), "-o", str(tmp_path / "engine"), "--program", str(program)]) == 2
        said = capsys.readouterr().err
        assert f"where:    --program {program}" in said
        assert f"found:    {found}" in said
        assert "correct the path, or omit it" in said


def test_a_program_is_refused_where_its_command_is_only_shown(bundle: Path, capsys) -> None:
    assert run(["engine", str(bundle), "--print-command", "--program", "my-build"]) == 2
    assert "no effect with --print-command" in capsys.readouterr().err
