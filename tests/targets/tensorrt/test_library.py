"""The two libraries behind one interface, and what happens without them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import r1v_export
from r1v_export.errors import CapabilityError
from r1v_export.targets.tensorrt import library as libraries
from r1v_export.targets.tensorrt.library import TENSORRT, TENSORRT_RTX, load, version_number

SOURCES = sorted(Path(r1v_export.__file__).parent.rglob("*.py"))
FORBIDDEN = re.compile(
    r"(?:BuilderFlag|flags?)\.(?:FP16|BF16|INT8|FP8|INT4|FP4|TF32|OBEY_\w+|PREFER_\w+)"
    r"|int8_calibrator|set_dynamic_range|set_calibration_profile|set_output_type|\.precision = "
)
"""Whatever decides a type besides the graph."""


def test_no_precision_flag_and_no_calibrator_is_set_anywhere() -> None:
    assert FORBIDDEN.search("config.set_flag(trt.BuilderFlag.FP16)")
    found = {path.name: match[0] for path in SOURCES if (match := FORBIDDEN.search(path.read_text(encoding="utf-8")))}
    assert not found


def test_only_one_file_imports_the_library_or_names_its_flags() -> None:
    using = [
        path.name
        for path in SOURCES
        if "BuilderFlag" in path.read_text() or "ComputeCapability." in path.read_text().replace("ir.", "")
    ]
    assert using == ["library.py"]


@pytest.mark.parametrize(
    ("target", "command"),
    [(TENSORRT, "not next to tensorrt-llm"), (TENSORRT_RTX, "pip install 'tensorrt-rtx-cu13>=1.7,<2'")],
)
def test_a_library_that_is_not_there_is_named_with_the_command_that_gets_it(target, command, monkeypatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(libraries.importlib, "import_module", missing)
    with pytest.raises(CapabilityError) as caught:
        load(target)
    assert command in str(caught.value.fix)
    assert caught.value.exit_code == 4


def test_a_library_that_is_too_old_is_refused(monkeypatch) -> None:
    module = SimpleNamespace(__version__="10.9.0.34")
    monkeypatch.setattr(libraries.importlib, "import_module", lambda name: module)
    with pytest.raises(CapabilityError, match=r"10\.13 or newer"):
        load(TENSORRT)


def test_versions_are_compared_as_numbers() -> None:
    assert version_number("10.9.0.34") < version_number("10.13") < version_number("11.0.0.114")


def test_tensorrt_rtx_builds_for_gpus_that_are_not_there_and_measures_nothing(library) -> None:
    assert {80, 89, 120} <= set(library.compute_capabilities)
    assert library.streams
    assert not library.times_kernels
