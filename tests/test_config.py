"""BuildConfig: strict, saved without paths, and read back as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from r1v_export.build_file import config_yaml, load_config
from r1v_export.checkpoint.resolve import BUILTIN_NAME
from r1v_export.config import BUILTIN_MODEL, BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.errors import UsageError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_nothing_given_is_the_shipped_model_in_fp32() -> None:
    config = load_config(None, {})
    assert (config.model, config.precision, config.targets) == (BUILTIN_NAME, "fp32", {})
    assert BUILTIN_MODEL == BUILTIN_NAME


def test_a_saved_config_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = BuildConfig(model="a/b", revision="c" * 40, precision="bf16", parity=ParityConfig(questions=3))
    assert load_config(write(tmp_path / "build.yaml", config_yaml(config)), {}) == config


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "build.yaml", "precision: bf16\ndevice: cuda\n")
    config = load_config(file, {"precision": "fp16"})
    assert (config.precision, config.device) == ("fp16", "cuda")


def test_one_nested_option_leaves_its_neighbors_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "build.yaml", "parity: {questions: 3}\n")
    config = load_config(file, {"parity": {"enabled": False}})
    assert config.parity == ParityConfig(enabled=False, questions=3)


def test_the_image_policy_is_saved_and_part_of_the_command(tmp_path: Path) -> None:
    config = BuildConfig(image_policy="published")
    assert load_config(write(tmp_path / "build.yaml", config_yaml(config)), {}).image_policy == "published"
    assert "--image-policy published" in config.command
    assert BuildConfig().image_policy == "as_displayed"


def test_the_command_is_quoted_where_a_shell_would_split_or_expand_it() -> None:
    calibration = CalibrationConfig(data="my images; $HOME.jsonl")
    config = BuildConfig(model="two words", precision="int8", calibration=calibration)
    printed = subprocess.run(["/bin/sh", "-c", f"printf '%s\\n' {config.command}"], capture_output=True, text=True)
    words = ["r1v-export", "build", "two words", "--precision", "int8", "--calib", "my images; $HOME.jsonl"]
    assert printed.stdout.splitlines() == words
    assert BuildConfig().command == f"r1v-export build {BUILTIN_MODEL} --precision fp32"


def test_options_of_a_calibration_are_typed_only_where_they_have_an_effect() -> None:
    calibration = CalibrationConfig(samples=4, artifact="done")
    assert "--samples" not in BuildConfig(calibration=CalibrationConfig(samples=4)).command
    assert BuildConfig(precision="fp8", calibration=calibration).command.endswith(" fp8 --calibrated done")


def test_a_list_of_targets_gives_each_its_defaults_once() -> None:
    assert BuildConfig.model_validate({"targets": ["b", "a", "b"]}).targets == {"b": {}, "a": {}}
    assert BuildConfig.model_validate({"targets": {"b": None}}).targets == {"b": {}}


def test_a_target_that_is_no_list_is_answered_with_the_list_to_write() -> None:
    with pytest.raises(UsageError, match="targets: neither a list of names nor names with options") as caught:
        load_config(None, {"targets": "onnxruntime"})
    assert caught.value.fix == "write targets: [onnxruntime]"


def test_a_recipe_is_no_build_file_and_the_message_names_its_option(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", "name: mine\nrules: []\n")
    with pytest.raises(UsageError, match="This is a recipe and not a build file") as caught:
        load_config(file, {})
    assert caught.value.fix == f"pass it with --recipe {file}"


def test_a_wrong_value_in_a_build_file_names_where_keys_are_explained(tmp_path: Path) -> None:
    file = write(tmp_path / "build.yaml", "calibration: 3\n")
    with pytest.raises(UsageError, match="wrong value of calibration") as caught:
        load_config(file, {})
    assert (caught.value.where, caught.value.found) == (file, "3")
    assert "r1v-export init" in str(caught.value.fix)


def test_targets_that_are_typed_keep_the_options_that_the_file_has_for_them(tmp_path: Path) -> None:
    file = write(tmp_path / "build.yaml", "targets: {a: {sm: [89, 120]}, b: {}}\n")
    config = load_config(file, {"targets": ("a", "c")})
    assert config.targets == {"a": {"sm": [89, 120]}, "c": {}}
    assert config.command.endswith("--target a --target c --sm 89,120")


def test_the_command_has_an_option_of_targets_where_all_that_have_it_agree() -> None:
    same = BuildConfig(targets={"a": {"tp": 2, "pp": 1}, "b": {"tp": 2}, "c": {}})
    assert same.command.endswith("--target c --tp 2")
    assert "--tp" not in BuildConfig(targets={"a": {"tp": 2}, "b": {"tp": 4}}).command
    block = {"a": {"int4_inputs": "exact"}}
    assert BuildConfig(precision="int4", targets=block).command.endswith("--target a --int4-inputs exact")
    assert "--int4-inputs" not in BuildConfig(precision="fp8", targets=block).command
    assert "--int4-inputs" not in BuildConfig(precision="int4", targets={"a": {"int4_inputs": None}}).command


def test_a_folder_is_saved_without_its_path(tmp_path: Path) -> None:
    saved = BuildConfig(model=str(tmp_path / "some" / "model")).saved("folder", None)
    assert saved.model == "model"
    assert str(tmp_path) not in config_yaml(saved) + saved.command


def test_a_hub_model_is_saved_with_the_commit_that_was_built() -> None:
    saved = BuildConfig(model="owner/name", revision="main").saved("hub", "c" * 40)
    assert saved.command == f"r1v-export build owner/name --revision {'c' * 40} --precision fp32"


def test_a_recipe_and_its_data_are_saved_without_their_paths() -> None:
    config = load_config(None, {"precision": "fp8", "recipe": "/a/b.yaml", "calibration": {"data": "/c/d"}})
    saved = config.saved("builtin", None)
    assert (saved.recipe, saved.calibration.data) == ("b.yaml", "d")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("precison: fp32", "unknown field precison"),
        ("parity: {question: 3}", "unknown field parity.question"),
        ("precision: fp7", "precision"),
        ("targets: []", "targets"),
        ("targets: onnxruntime", "targets"),
        ("targets: [1]", "targets"),
        ("targets: {a: 1}", "targets"),
        ("parity: {questions: 0}", "questions"),
        ("- a list", "does not consist of keys and values"),
        ("a: [", "not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_wrong_file_is_one_usage_error(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        load_config(write(tmp_path / "build.yaml", text), {})


def test_a_missing_file_is_one_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)cannot be read.*expected.*found.*fix.*--config"):
        load_config(tmp_path / "none.yaml", {})
