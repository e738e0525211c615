"""Quantised builds, from the command's configuration to a running engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.pipeline.build import build
from r1v_export.pipeline.bundle import Bundle
from r1v_export.pipeline.calibration import CALIBRATION, open_artefact
from r1v_export.pipeline.parity_gate import candidate_side, compare, gates, questions, rounding

FEW = CalibrationConfig(samples=2)


def quantised(config: BuildConfig, precision: str, **changes: object) -> BuildConfig:
    return config.model_copy(update={"precision": precision, "calibration": FEW, **changes})


@pytest.fixture(scope="module", params=["fp8", "int8", "int4"])
def bundle(request: pytest.FixtureRequest, tiny_config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(quantised(tiny_config, request.param), tmp_path_factory.mktemp("quantised") / request.param).out


def test_the_graphs_hold_codes_and_the_bundle_its_calibration(bundle: Path) -> None:
    weights = {"fp8": ir.DataType.FLOAT8E4M3FN, "int8": ir.DataType.INT8, "int4": ir.DataType.INT4}[bundle.name]
    decoder = ir.load(bundle / "graphs" / "decoder.onnx")
    codes = [v for name, v in decoder.graph.initializers.items() if name.endswith("_proj.weight.T.codes")]
    assert len(codes) == 7
    assert {value.dtype for value in codes} == {weights}
    assert {path.name for path in (bundle / CALIBRATION).iterdir()} == {
        "codes",
        "recipe.yaml",
        "scales.safetensors",
        "stats.json",
    }


def test_the_engine_computes_what_the_fake_quantised_model_computes(bundle: Path, tiny_model: Path) -> None:
    checkpoint = Checkpoint.open(tiny_model)
    artefact = open_artefact(bundle, checkpoint)
    gate, reference = next(gates(checkpoint, artefact, "cpu"))
    candidate = candidate_side(bundle, "onnxruntime", "cpu")
    samples = questions(checkpoint, 2)
    limits = rounding(Bundle.open(bundle).config, "onnxruntime", checkpoint.spec, artefact)
    report = compare(reference, candidate, samples, lambda done: None, gate=gate, max_new_tokens=4, **limits)
    assert report.passed, report.first_bad


def test_a_stopped_calibration_goes_on_and_a_finished_build_is_up_to_date(
    tiny_config: BuildConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tree: Callable[[Path], dict[str, bytes]],
) -> None:
    config = quantised(tiny_config, "fp8")
    whole = build(config, tmp_path / "whole").out
    quantise, done = _stop_after(2)
    with monkeypatch.context() as stopped:
        stopped.setattr("r1v_export.quantization.calibrate.quantize_block", quantise)
        with pytest.raises(KeyboardInterrupt):
            build(config, tmp_path / "stopped")
    assert len(done) == 2
    build(config, tmp_path / "stopped")
    assert tree(tmp_path / "stopped") == tree(whole)
    assert build(config, whole).ran == ()


def _stop_after(blocks: int) -> tuple[Callable[..., object], list[object]]:
    """The real function, interrupted when it is called once more than `blocks` times; and its results so far."""
    from r1v_export.quantization.quantize import quantize_block

    done: list[object] = []

    def quantise(*args: object, **kwargs: object) -> object:
        if len(done) == blocks:
            raise KeyboardInterrupt
        done.append(quantize_block(*args, **kwargs))  # type: ignore[arg-type]
        return done[-1]

    return quantise, done


def test_a_recipe_of_ones_own_is_used_and_named_in_the_bundle(tiny_config: BuildConfig, tmp_path: Path) -> None:
    own = tmp_path / "projector-only.yaml"
    own.write_text(
        "name: projector-only\ndescription: two linears\nrules:\n  - modules: mlp1.*\n"
        "    scheme: {weights: {type: fp8, granularity: channel, algorithm: rtn}, inputs: {type: fp8, mode: static}}\n"
    )
    built = build(quantised(tiny_config, "fp8", recipe=str(own)), tmp_path / "out")
    artefact = open_artefact(built.out, Checkpoint.open(tiny_config.model))
    assert artefact is not None
    assert list(artefact.schemes) == ["mlp1.1", "mlp1.3"]
    assert "--recipe projector-only.yaml" in built.manifest.command
