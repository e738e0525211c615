"""What `doctor` tells to type is what the project itself declares, and works from a clone without an index of ours."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from r1v_export.errors import CapabilityError
from r1v_export.targets import registry
from r1v_export.targets.entry_points import names
from r1v_export.targets.gguf import doctor as gguf
from r1v_export.targets.onnxruntime import doctor as onnxruntime
from r1v_export.targets.openvino import doctor as openvino
from r1v_export.targets.tensorrt.library import DISTRIBUTIONS
from r1v_export.targets.tensorrt_llm import doctor as tensorrt_llm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).parents[2]

REQUIREMENTS = {
    "onnxruntime": onnxruntime.REQUIREMENT,
    "onnxruntime-gpu": onnxruntime.GPU_REQUIREMENT,
    "gguf": gguf.REQUIREMENT,
    "openvino": openvino.REQUIREMENT,
    "tensorrt-llm": tensorrt_llm.REQUIREMENT,
    **{target: distribution.requirement for target, distribution in DISTRIBUTIONS.items()},
}


@pytest.mark.parametrize("extra", REQUIREMENTS)
def test_a_requirement_is_the_one_of_the_extra(extra: str) -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras[extra] == [REQUIREMENTS[extra]]


def test_nothing_tells_to_install_this_project_from_an_index() -> None:
    sources = {path: path.read_text() for path in (PROJECT / "r1v_export").rglob("*.py")}
    assert not [str(path) for path, text in sources.items() if re.search(r"pip install '?r1v-export", text)]


def test_without_its_library_a_target_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    found = {name: registry.get_target(name).readiness() for name in names()}
    assert {name for name, target in found.items() if target.lacks} == {
        "onnxruntime",
        "tensorrt",
        "tensorrt-rtx",
        "gguf",
        "openvino",
    }
    assert all(target.fix and target.fix.startswith("pip install") for target in found.values() if target.lacks)
    assert "pip install 'tensorrt-llm" in found["tensorrt-llm"].found["engines"]


def test_a_library_that_does_not_load_is_a_fact_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "r1v_export.targets.onnxruntime.library", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(onnxruntime, "version_of", lambda *names: "1.32.0")
    found = onnxruntime.readiness()
    assert found.lacks is not None
    assert found.lacks.startswith("onnxruntime does not load: ")
    with pytest.raises(CapabilityError, match="does not load"):
        onnxruntime.require()
