from __future__ import annotations

import sys

import pytest

from r1v_export.config import BuildConfig
from r1v_export.contract import DECODER, GRAPHS
from r1v_export.cpus import use_threads
from r1v_export.errors import BundleError, CapabilityError, UsageError
from r1v_export.targets.openvino import doctor
from r1v_export.targets.openvino.target import OpenVinoTarget
from tests.targets.openvino.conftest import NEEDS_OPENVINO
from tests.tiny_models import tiny_spec


def config(**fields) -> BuildConfig:
    options = {name: fields.pop(name) for name in ("matmul", "int4_inputs") if name in fields}
    return BuildConfig(targets={"openvino": options}, **fields)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "require", lambda: None)
    monkeypatch.setattr(doctor, "has_bfloat16", lambda: True)


@pytest.mark.parametrize("precision", ["fp32", "fp8", "int8", "int4"])
def test_these_precisions_are_taken(installed, precision):
    OpenVinoTarget().check(config(precision=precision))


@pytest.mark.parametrize(("precision", "found"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_16_bit_graphs_are_refused_with_the_precision_to_take(installed, precision, found):
    with pytest.raises(CapabilityError, match="--precision fp32") as error:
        OpenVinoTarget().check(config(precision=precision))
    assert error.value.found == found


def test_a_gpu_is_refused(installed):
    with pytest.raises(CapabilityError, match="--device cpu"):
        OpenVinoTarget().check(config(device="cuda"))
    assert OpenVinoTarget().missing("cuda") == "cuda"


def test_8_bit_inputs_need_4_bit_weights(installed):
    OpenVinoTarget().check(config(precision="int4", int4_inputs="int8"))
    with pytest.raises(UsageError, match="omit int4_inputs"):
        OpenVinoTarget().check(config(precision="fp8", int4_inputs="int8"))


def test_a_cpu_without_bfloat16_builds_in_float32_only(installed, monkeypatch):
    monkeypatch.setattr(doctor, "has_bfloat16", lambda: False)
    with pytest.raises(CapabilityError, match="matmul: float32"):
        OpenVinoTarget().check(config())
    OpenVinoTarget().check(config(matmul="float32"))


def test_parity_allows_for_what_products_and_inputs_round():
    target, spec = OpenVinoTarget(), tiny_spec()
    assert target.numerics(config(), spec).compute == "bfloat16"
    assert target.numerics(config(matmul="float32"), spec).compute == "float32"
    assert target.numerics(config(precision="int4"), spec).rounds_inputs
    assert not target.numerics(config(precision="int4", int4_inputs="exact"), spec).rounds_inputs
    assert not target.numerics(config(precision="fp8"), spec).rounds_inputs


def test_without_openvino_everything_says_what_to_install(monkeypatch, of_r1v):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for attempt in (lambda: OpenVinoTarget().check(config()), of_r1v.open):
        with pytest.raises(CapabilityError, match="pip install 'openvino"):
            attempt()
    assert OpenVinoTarget().missing("cpu") == "openvino is not installed"


def test_a_library_that_does_not_load_is_a_fact_and_no_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "r1v_export.targets.openvino.library", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(doctor, "version_of", lambda *names: "2026.4.1")
    assert doctor.readiness().lacks.startswith("openvino does not load: ")


def test_a_missing_file_is_named_before_anything_runs(own, installed):
    (own.engine_folder / "embed.onnx").unlink()
    with pytest.raises(BundleError, match=r"no embed\.onnx"):
        own.open()


@NEEDS_OPENVINO
def test_doctor_knows_version_and_products():
    found = OpenVinoTarget().readiness()
    assert found.lacks is None
    assert found.found.keys() == {"openvino", "products"}
    assert "float32" in found.found["products"]


@NEEDS_OPENVINO
def test_graphs_have_the_threads_that_are_asked_for(of_r1v):
    use_threads(2)
    try:
        engine = of_r1v.open()
        graphs = [getattr(engine, f"_{name}").compiled for name in GRAPHS if name != DECODER]
        graphs += [engine._decoder_graphs]
    finally:
        use_threads(None)
    compiled = [graph.model for graph in graphs]
    assert [model.get_property("INFERENCE_NUM_THREADS") for model in compiled] == [2] * len(GRAPHS)
