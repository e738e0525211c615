"""The programs of libr1v, built once, and bundles for them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.pipeline.build import build
from tests.engines import programs

ONNXRUNTIME = Path(onnxruntime.__file__).parent / "capi"
"""Folder of the library that Python uses, too."""

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def sanitized(made_once: MakeOnce) -> Path:
    """The tests of engines/, and where Clang is installed its fuzzers, in one build with AddressSanitizer and
    UndefinedBehaviorSanitizer."""
    options: tuple[str, ...] = ("-DR1V_SANITIZE=address,undefined", *programs.QUICK)
    targets = programs.TESTS
    if programs.HAS_CLANG:
        options = ("-DCMAKE_CXX_COMPILER=clang++", "-DR1V_SANITIZE=address,undefined,fuzzer-no-link", *programs.QUICK)
        options, targets = (*options, "-DR1V_BUILD_FUZZERS=ON"), (*targets, *programs.FUZZERS)
    return made_once("sanitized", lambda folder: programs.build(folder, *targets, options=options))


@pytest.fixture(scope="session")
def race_checked(made_once: MakeOnce) -> Path:
    """What threads share, built with ThreadSanitizer."""
    options = ("-DR1V_SANITIZE=thread", *programs.QUICK)
    targets = ("r1v_api_test", "r1v_runner_test", "r1v_tensorrt_llm_test")
    return made_once("race-checked", lambda folder: programs.build(folder, *targets, options=options))


@pytest.fixture(scope="session")
def int4_bundle(made_once: MakeOnce) -> Path:
    """The shipped model with int4 weights, rounded to nearest, and exact inputs. Not to be written to."""
    targets = {"onnxruntime": {"int4_inputs": "exact"}}
    config = BuildConfig(precision="int4", recipe="int4-rtn", targets=targets, parity=ParityConfig(enabled=False))
    return made_once("nano-int4", lambda out: build(config, out))


@pytest.fixture(scope="session")
def int8_bundle(made_once: MakeOnce) -> Path:
    """The shipped model in INT8, weights and inputs. Not to be written to."""
    samples = CalibrationConfig(samples=4)
    config = BuildConfig(precision="int8", calibration=samples, parity=ParityConfig(enabled=False))
    return made_once("nano-int8", lambda out: build(config, out))


@pytest.fixture(scope="session")
def int8_cache_bundle(made_once: MakeOnce) -> Path:
    """The shipped model with int4 weights and an INT8 key-value cache. Not to be written to."""
    samples = CalibrationConfig(samples=4)
    config = BuildConfig(precision="int4", recipe="int4-kv", calibration=samples, parity=ParityConfig(enabled=False))
    return made_once("nano-int4-int8-cache", lambda out: build(config, out))


@pytest.fixture(scope="session")
def r1v(engines: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the program `r1v` with some arguments, and stdin."""

    def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"R1V_ONNXRUNTIME": str(ONNXRUNTIME)}
        words = [str(word) for word in (engines / "engines/cli/r1v", *arguments)]
        return subprocess.run(words, env=environment, capture_output=True, text=True, input=stdin, check=False)

    return run
