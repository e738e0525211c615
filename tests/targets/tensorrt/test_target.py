"""The shipped model, built with the real TensorRT-RTX for GPUs that are not here, the way `build` does it."""

from __future__ import annotations

import hashlib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from r1v_export import contract
from r1v_export.cli import main
from r1v_export.config import BuildConfig
from r1v_export.errors import BundleError, CapabilityError, UsageError
from r1v_export.manifest import read_manifest
from r1v_export.pipeline.build import build, plan
from r1v_export.quantization.recipe import Scheme
from r1v_export.targets.tensorrt import target as tensorrt_target
from r1v_export.targets.tensorrt.build.inspection import engine_facts
from r1v_export.targets.tensorrt.build.plan import PLAN, read_info
from r1v_export.targets.tensorrt.library import TENSORRT, TENSORRT_RTX, Library
from r1v_export.targets.tensorrt.runtime.loading import PLANS
from r1v_export.targets.tensorrt.target import TensorRTRTXTarget, TensorRTTarget
from tests.tiny_models import tiny_spec

PRODUCTS = {"fp16": "Half x Half", "fp8": "FP8 x FP8", "int4": "Half x Int4"}
"""What the decoder's matrix products take, by the engine's own layers."""


OPTIONS = {"sm": [89, 120], "tile_profiles": [[1, 5]]}


def config(**changes: object) -> BuildConfig:
    fields = {"precision": "fp16", "targets": {TENSORRT_RTX: OPTIONS}, "calibration": {"samples": 1}}
    return BuildConfig.model_validate({**fields, **changes})


@pytest.fixture(scope="module", params=["fp16", "fp8", "int4"])
def bundle(request, library, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp(f"nano-{request.param}") / "out"
    built = build(config(precision=request.param), out)
    assert "cuda" in built.manifest.parity[TENSORRT_RTX].lower()
    return out


@pytest.mark.slow
def test_vision_projector_and_decoder_build_for_ada_and_blackwell(bundle) -> None:
    engine, precision = bundle / "engines" / TENSORRT_RTX, read_manifest(bundle).precision
    facts = engine_facts(engine)
    for name in PLANS:
        info, content = read_info(engine, name), (engine / f"{name}{PLAN}").read_bytes()
        assert info.compute_capabilities == (89, 120)
        assert info.fused_attention
        assert (len(content), hashlib.sha256(content).hexdigest()) == (info.plan_bytes, info.sha256)
    assert facts[contract.VISION]["attention"] == "4 fused kernels"
    products = Counter({kind.partition(" ->")[0]: n for kind, n in facts[contract.DECODER]["products"].items()})
    assert products.most_common(1)[0][0] == PRODUCTS[precision]


@pytest.mark.slow
def test_the_plan_of_a_build_counts_weights_and_kernels_of_all_plans(bundle, tmp_path) -> None:
    stages = plan(config(precision=read_manifest(bundle).precision), tmp_path / "new")
    planned = next(stage.size_bytes for stage in stages if stage.name == f"{TENSORRT_RTX}-engine")
    infos = [read_info(bundle / "engines" / TENSORRT_RTX, name) for name in PLANS]
    assert planned == pytest.approx(sum(info.plan_bytes for info in infos), rel=0.1)


@pytest.mark.parametrize(
    ("precision", "measured"), [("fp32", 46_012_044), ("fp16", 34_168_860), ("fp8", 41_362_008), ("int4", 31_519_420)]
)
def test_the_plan_knows_what_five_profiles_of_tiles_weigh(precision: str, measured: int, tmp_path: Path) -> None:
    """Measured: the plans of r1v-nano by TensorRT-RTX 1.7.1 with the default sizes; fp16 was planned as 11.9 MB."""
    without_options = BuildConfig.model_validate({"precision": precision, "targets": {TENSORRT_RTX: {"sm": [89]}}})
    stages = plan(without_options, tmp_path / "new")
    planned = next(stage.size_bytes for stage in stages if stage.name == f"{TENSORRT_RTX}-engine")
    assert planned == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
def test_a_bundle_without_a_gpu_can_be_inspected_and_verified_and_says_what_running_it_needs(bundle, capsys) -> None:
    assert main.run(["inspect", str(bundle), "--target", TENSORRT_RTX]) == 0
    assert "fused kernels" in capsys.readouterr().out
    assert main.run(["inspect", str(bundle), "--roofline", "H100", "--report", str(bundle.parent / "page.html")]) == 0
    assert (bundle.parent / "page.html").read_text().startswith("<!doctype html>")
    assert main.run(["verify", str(bundle)]) == 0
    assert main.run(["run", str(bundle), "What do you see?", "--device", "cuda"]) == 4
    assert "CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"targets": {TENSORRT_RTX: {"sm": [90]}}}, UsageError, "cannot build ahead of time"),
        ({"precision": "fp8", "targets": {TENSORRT_RTX: {"sm": [80, 89]}}}, CapabilityError, "float8e4m3fn"),
        ({"precision": "bf16", "targets": {TENSORRT_RTX: {"sm": [75]}}}, CapabilityError, "bfloat16"),
        ({"targets": {TENSORRT_RTX: {"sm": "current"}}}, CapabilityError, r"no GPU to build for[\s\S]*or pass --sm"),
        ({"targets": {TENSORRT_RTX: {"strip": True}}}, CapabilityError, "without a GPU"),
        ({"precision": "int4", "targets": ["onnxruntime", TENSORRT_RTX]}, UsageError, "another folder"),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_work(library, monkeypatch, changes, error, text) -> None:
    monkeypatch.setattr(tensorrt_target, "compute_capability", lambda: None)
    with pytest.raises(error, match=text):
        TensorRTRTXTarget().check(config(**changes))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize(
    ("kind", "granularity", "group_size"), [("int8", "channel", None), ("int8", "group", 32), ("fp8", "channel", None)]
)
def test_imported_8_bit_weights_without_8_bit_inputs_are_refused(kind, granularity, group_size) -> None:
    weights = {"type": kind, "granularity": granularity, "group_size": group_size, "algorithm": "imported"}
    schemes = {"language_model.model.layers.0.mlp.up_proj": Scheme.model_validate({"weights": weights})}
    with pytest.raises(UsageError, match=f"{kind.upper()} products have {kind.upper()} inputs") as caught:
        TensorRTTarget().check_model(BuildConfig(model="m"), tiny_spec(), schemes)
    assert "up_proj" in str(caught.value.where)
    assert caught.value.fix == "--target onnxruntime"


def test_imported_8_bit_weights_with_static_8_bit_inputs_are_not_refused() -> None:
    weights = {"type": "int8", "granularity": "channel", "algorithm": "imported"}
    scheme = Scheme.model_validate({"weights": weights, "inputs": {"type": "int8", "mode": "static"}})
    TensorRTTarget().check_model(BuildConfig(model="m"), tiny_spec(), {"language_model.lm_head": scheme})


def test_a_scale_for_each_token_is_refused() -> None:
    weights = {"type": "fp8", "granularity": "channel", "algorithm": "rtn"}
    scheme = Scheme.model_validate({"weights": weights, "inputs": {"type": "fp8", "mode": "dynamic"}})
    with pytest.raises(UsageError, match="knows when it builds") as caught:
        TensorRTTarget().check_model(BuildConfig(model="m"), tiny_spec(), {"language_model.lm_head": scheme})
    assert "static recipe" in caught.value.fix


def test_tensorrt_itself_builds_only_where_its_gpu_is(monkeypatch) -> None:
    installed = Library(TENSORRT, SimpleNamespace(__version__="10.13.3.9"))
    monkeypatch.setattr(tensorrt_target, "load", lambda target: installed)
    assert "CUDA GPU" in (TensorRTTarget().missing("cuda") or "")
    with pytest.raises(CapabilityError, match=r"no GPU to build for[\s\S]*tensorrt 10\.13\.3\.9[\s\S]*tensorrt-rtx"):
        TensorRTTarget().check(config(targets=[TENSORRT]))
    with pytest.raises(UsageError, match=r"cannot build ahead of time for this GPU[\s\S]*fix:      choose among these"):
        TensorRTTarget().check(config(targets={TENSORRT: {"sm": [89]}}))


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="says what happens without TensorRT")
def test_without_tensorrt_the_command_names_how_to_get_it_and_what_it_conflicts_with(capsys, tmp_path) -> None:
    assert main.run(["build", "--target", TENSORRT, "-o", str(tmp_path / "out")]) == 4
    said = capsys.readouterr().err
    assert "pip install 'tensorrt>=10.13,<12' (not next to tensorrt-llm" in said
    assert not (tmp_path / "out").exists()


def test_a_target_without_plans_cannot_be_inspected_as_an_engine(tmp_path) -> None:
    with pytest.raises(BundleError):
        engine_facts(tmp_path)


def test_compute_capabilities_are_numbers(capsys) -> None:
    assert main.run(["build", "--target", TENSORRT_RTX, "--sm", "ada"]) == 2
    assert "89,120" in capsys.readouterr().err
