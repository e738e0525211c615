"""`tests/` mirrors the package: `test_X.py` tests the module or the folder `X` of its place."""

from __future__ import annotations

from pathlib import Path

import pytest

import r1v_export

PACKAGE = Path(r1v_export.__file__).parent
TESTS = Path(__file__).parent

EXCEPTIONS = {
    "test_distribution.py": "pyproject.toml and MANIFEST.in: the wheel and the sdist",
    "test_campaign.py": "benchmarks/gpu, on a CPU",
    "test_docstrings.py": "reads every source file",
    "test_imports.py": "reads every source file",
    "test_mirror.py": "reads the names of test files",
    "test_readme.py": "runs what the documents show",
    "test_benchmark_tables.py": "benchmarks/tables.py, and the pages and results that are committed",
    "test_ratchet.py": "benchmarks/ratchet.py",
    "test_reader_matrix.py": "benchmarks/reader_matrix.py and the committed results",
    "test_whole_answers.py": "benchmarks/whole_answers.py",
    "test_vocabulary.py": "reads every text of the repository",
    "fuzz/test_fuzz.py": "changed inputs for every reader of the package",
    "checkpoint/test_against_transformers.py": "the whole checkpoint and reference model against transformers",
    "checkpoint/test_published_configs.py": "one case per published configuration, through the whole of checkpoint/",
    "engines/test_c_api.py": "engines/api and engines/include, which are C++",
    "engines/test_engines.py": "engines/base, bundle, backends and runner, which are C++",
    "engines/test_fuzzers.py": "engines/fuzz, which is C++",
    "engines/test_image.py": "engines/image, which is C++",
    "engines/test_int8_images.py": "engines/backends/onnxruntime/images.cpp, which is C++",
    "engines/test_program.py": "engines/cli, which is C++",
    "engines/test_triton.py": "engines/triton, which is C++",
    "engines/test_tensorrt_llm.py": "engines/backends/tensorrt_llm, which is C++",
    "engines/test_text.py": "engines/text and engines/sampling, which are C++",
    "exporters/test_golden.py": "every graph against graphs/",
    "nano/test_displayed_images.py": "answers of the shipped model, from the image file to the text",
    "nano/test_training.py": "tests examples/train_nano, which is outside the package",
    "parity/test_page.py": "the page of parity/report.py in a browser",
    "parity/test_onnxruntime.py": "a parity check of a real engine",
    "pipeline/test_crash.py": "whole builds stopped at every file operation",
    "pipeline/test_imported_build.py": "whole builds of checkpoints that are quantized already",
    "pipeline/test_quantized_build.py": "whole builds that calibrate",
    "pipeline/test_resume.py": "a whole build in a process that is killed",
    "pipeline/test_unified_build.py": "whole builds of the target hf-unified",
    "serve/test_openapi.py": "the routes, by requests made from the application's own document",
    "serve/test_page.py": "serve/static/ in a browser",
    "serve/test_soak.py": "a server process under minutes of load",
    "runner/batching/test_arrivals.py": "whole batches and runners under random arrivals, on a toy engine",
    "serialized/test_prompt_as_data.py": "pipeline.json against processing/prompt.py",
    "serialized/test_standalone.py": "a program that reads the documents without the package",
    "targets/test_doctor.py": "doctor.py of every target",
    "targets/test_target_names.py": "reads every source file outside targets/",
    "targets/test_vllm_tokens.py": "answers of vLLM against those of the reference",
    "targets/hf_unified/test_bad_input.py": "damaged folders, for the reader of checkpoints and for the target's own",
    "targets/tensorrt/test_polygraphy.py": "parity/metrics.py against Polygraphy",
    "targets/tensorrt/test_true_width.py": "a graph of the 38B's width through the whole builder",
    "targets/tensorrt_llm/test_library_rules.py": "what TensorRT-LLM takes, against all that is written for it",
    "targets/tensorrt_llm/test_bad_input.py": "what the checkpoint's writer and its readers refuse",
    "targets/third_party/test_third_party.py": "a target of another package",
}
"""Test file -> what it tests, where that is no one module or folder."""


def is_mirrored(test_file: Path) -> bool:
    """Whether the package has the module or the folder of a test file, whose path is relative to tests/.

    The tests of a whole folder lie in it or next to it: `x/test_x.py` or `test_x.py` for `x/`.
    """
    place, name = PACKAGE / test_file.parent, test_file.stem.removeprefix("test_")
    return (place / f"{name}.py").is_file() or (place / name).is_dir() or (place.name == name and place.is_dir())


@pytest.mark.parametrize(
    ("test_file", "mirrored"),
    [
        ("test_config.py", True),  # a module
        ("test_targets.py", True),  # a folder, next to it
        ("targets/test_targets.py", True),  # a folder, in it
        ("checkpoint/test_targets.py", False),
        ("targets/test_config.py", False),
        ("nowhere/test_nowhere.py", False),
    ],
)
def test_a_test_file_has_the_name_of_a_module_or_folder_of_its_place(test_file: str, mirrored: bool) -> None:
    assert is_mirrored(Path(test_file)) is mirrored


def test_every_test_file_mirrors_the_package_or_has_a_reason_not_to() -> None:
    files = [path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")]
    others = {path.as_posix() for path in files if not is_mirrored(path)}
    assert sorted(others - EXCEPTIONS.keys()) == [], "rename it to the module or folder that it tests"
    assert sorted(EXCEPTIONS.keys() - others) == [], "an exception that is not needed"
