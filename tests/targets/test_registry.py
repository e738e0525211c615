from __future__ import annotations

import subprocess
import sys

import pytest

from r1v_export.config import BuildConfig
from r1v_export.errors import UsageError
from r1v_export.targets import registry
from r1v_export.targets.entry_points import DEFAULT, names


@pytest.mark.parametrize("name", names())
def test_every_registered_target_can_be_made_and_knows_its_name(name):
    assert registry.get_target(name).name == name


def test_targets_whose_files_are_for_another_library_say_that_it_does_not_run_in_the_gate():
    said = {target.name: target.read_back for target in registry.loadable() if target.read_back}
    libraries = {
        "hf-unified": "TensorRT-LLM, vLLM and SGLang",
        "compressed-tensors": "vLLM and SGLang",
        "tensorrt-llm": "TensorRT-LLM",
        "gguf": "llama.cpp",
    }
    assert said.keys() == libraries.keys()
    assert all(said[name].endswith(f", without {library}") for name, library in libraries.items())


def test_an_unknown_target_lists_the_known_ones():
    with pytest.raises(UsageError, match="onnxruntime") as error:
        registry.get_target("no-such-target")
    assert error.value.found == "'no-such-target'"
    assert "'no-such-target'" in error.value.what
    assert "install the package" in error.value.fix


def test_a_misspelled_target_is_answered_with_the_nearest_and_an_empty_one_is_visible():
    with pytest.raises(UsageError, match="no target 'onxruntime'") as error:
        registry.get_target("onxruntime")
    assert error.value.fix == "did you mean onnxruntime?"
    with pytest.raises(UsageError, match="no target ''"):
        registry.get_target("")


def test_importing_the_registry_imports_no_engine():
    code = "import sys, r1v_export.targets.registry; print(*(m for m in ('torch', 'onnxruntime') if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_every_target_can_be_imported_without_the_libraries_of_any():
    """`doctor` says what is missing, so that must not be what stops it."""
    code = """
import sys
for name in ("onnxruntime", "tensorrt", "tensorrt_rtx", "tensorrt_llm"):
    sys.modules[name] = None
from r1v_export.targets import registry
from r1v_export.targets.entry_points import names
print(*(registry.get_target(name).name for name in names()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == list(names())


def test_a_config_is_resolved_to_the_default_target_with_every_option_said():
    config = registry.resolved(BuildConfig())
    assert config.targets == {DEFAULT: {"int4_inputs": None, "image_products": None}}
    assert registry.resolved(config) == config


def test_targets_are_resolved_in_order_of_preference():
    config = BuildConfig.model_validate({"targets": ["hf-unified", "onnxruntime"]})
    assert list(registry.resolved(config).targets) == ["onnxruntime", "hf-unified"]


@pytest.mark.parametrize(
    ("block", "complaint"),
    [({"int4_input": "int8"}, "unknown field int4_input"), ({"int4_inputs": "int4"}, "int4_inputs")],
)
def test_a_wrong_block_is_one_usage_error_that_names_the_target(block, complaint):
    with pytest.raises(UsageError, match=complaint) as error:
        registry.resolved(BuildConfig(targets={"onnxruntime": block}))
    assert "onnxruntime" in str(error.value.where)


def test_an_option_goes_to_every_target_that_has_it():
    config = BuildConfig.model_validate({"targets": ["tensorrt", "tensorrt-rtx", "onnxruntime"]})
    targets = registry.with_option(config, "sm", [89], "--sm 89").targets
    assert (targets["tensorrt"]["sm"], targets["tensorrt-rtx"]["sm"]) == ([89], [89])
    assert "sm" not in targets["onnxruntime"]


def test_gpus_that_share_a_model_go_to_every_target_that_has_them():
    config = BuildConfig.model_validate({"targets": ["tensorrt-llm", "hf-unified"]})
    targets = registry.with_option(config, "tp", 2, "--tp 2").targets
    assert (targets["tensorrt-llm"]["tp"], targets["hf-unified"]["tp"]) == (2, 2)
    with pytest.raises(UsageError) as error:
        registry.with_option(config, "tp", 3, "--tp 3")
    assert "1, 2, 4 or 8" in str(error.value)


def test_an_option_that_no_target_of_the_build_has_is_refused():
    with pytest.raises(UsageError, match="option sm") as error:
        registry.with_option(BuildConfig(), "sm", [89], "--sm 89")
    assert error.value.expected == "tensorrt or tensorrt-rtx"


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4"])
def test_around_what_is_quantized_graphs_compute_in_what_targets_and_device_know(precision):
    def compute(**fields):
        return registry.compute_dtype(BuildConfig(precision=precision, **fields))

    assert compute() == "float32"
    assert compute(device="cuda") == "float16"
    assert compute(targets={"tensorrt-rtx": {}}) == "float16"
    assert compute(targets={"tensorrt-rtx": {}, "onnxruntime": {}}) == "float32"
