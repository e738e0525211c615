"""The test programs of engines/, built for a test and run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
UNITY = ("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0")
"""Options of a build that takes a third of the time: each folder is one file to the compiler."""
QUICK = ("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1", *UNITY)
"""The same for programs that run for seconds."""
TESTS = tuple(f"r1v_{path.parent.name}_test" for path in (REPOSITORY / "engines/tests").glob("*/CMakeLists.txt"))
"""Targets of all test programs."""
FUZZERS = tuple(f"r1v_{path.stem}" for path in (REPOSITORY / "engines/fuzz").glob("*_fuzzer.cpp"))
HAS_CLANG = shutil.which("clang++") is not None
"""Fuzzers need it."""


def build(folder: Path, *targets: str, options: tuple[str, ...] = ()) -> Path:
    """Build CMake targets in a folder.

    Args:
        options: of CMake, such as `-DR1V_SANITIZE=address,undefined`.
    """
    _run("cmake", "-S", REPOSITORY, "-B", folder, "-G", "Ninja", *options)
    _run("ninja", "-C", folder, *targets)
    return folder


def run(program: Path, *arguments: object, golden: Path | None = None) -> str:
    """Run a program, with golden vectors if it has some, and return what it prints."""
    environment = os.environ if golden is None else os.environ | {"R1V_GOLDEN_DIR": str(golden)}
    return _run(program, *arguments, environment=environment)


def _run(*command: object, environment: os._Environ[str] | dict[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, errors="replace", check=False)
    assert ran.returncode == 0, f"{words[0]}: {ran.returncode}\n{ran.stdout[-6000:]}\n{ran.stderr[-6000:]}"
    return ran.stdout
