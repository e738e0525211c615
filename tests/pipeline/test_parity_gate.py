"""Which models an engine is compared with, how, and where the reports are."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from r1v_export.bundle import Bundle
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.cli import main
from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig, Precision
from r1v_export.errors import CapabilityError
from r1v_export.parity.activation_store import ActivationStore
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.report import read_report
from r1v_export.parity.schema import BoundaryResult
from r1v_export.pipeline import parity_gate
from r1v_export.pipeline.build import build, plan
from r1v_export.pipeline.calibration import open_artifact
from r1v_export.pipeline.parity_gate import (
    GateRun,
    GeneratedQuestions,
    WholeShares,
    check_options,
    choose_gate,
    gate_memory_of,
    gate_names,
)
from r1v_export.progress import ignore_progress
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.recipe import load as load_recipe
from r1v_export.quantization.recipe import resolve
from r1v_export.targets.registry import resolved
from tests.tiny_models import tiny_spec

LAYERS = ("vision_block", "decoder_layer", "tokens")
"""Boundaries of one kind of gate only."""


def test_rating_texts_has_a_share_of_the_progress_that_other_checkpoints_do_not_have(tiny_model: Path) -> None:
    spec = Checkpoint.open(str(tiny_model)).spec
    without, rated = (WholeShares.of(spec, 8, 64, replies) for replies in (0, 8))
    assert without.compared == 1.0
    assert 0.0 < rated.opened < without.opened < rated.compared < 1.0
    assert without.of_batch == rated.of_batch


def test_weights_that_the_target_rounds_are_compared_with_the_original_ones(tiny_model: Path, tmp_path: Path) -> None:
    parity = ParityConfig(questions=1, max_new_tokens=2)
    config = BuildConfig(model=str(tiny_model), precision="fp16", targets={"gguf": {"model": "Q4_K_M"}}, parity=parity)
    bundle = build(config, tmp_path / "out").out
    report = read_report(bundle / "report")
    assert (report.gate, report.passed) == ("quantization", True)
    assert not (bundle / "report" / "quantization").exists()
    (embeds,) = report.boundary("embeds").checks
    assert 0.99 < embeds.value < 0.9999


def test_without_a_calibration_only_the_arithmetic_is_compared() -> None:
    assert gate_names(None, None) == ("arithmetic",)
    assert gate_names(None, "8-bit weights") == ("quantization",)
    assert gate_names(load_recipe("int4-rtn"), None) == ("arithmetic", "quantization")


def quantized_to(types: dict[str, str]) -> Artifact:
    """What `check_options` reads of a calibration whose linears have weights of some types."""
    schemes = {name: SimpleNamespace(weights=SimpleNamespace(type=kind)) for name, kind in types.items()}
    return cast("Artifact", SimpleNamespace(schemes=schemes, quantizes_inputs=False))


@pytest.mark.parametrize(
    ("images", "decoder", "vision", "rounding"),
    [
        ("bf16", "exact", "int8", ()),
        ("bf16", "int8", "int8", ("onnxruntime",)),
        ("int4", "exact", "int8", ("openvino",)),
        ("int4", "int8", "int8", ("onnxruntime", "openvino")),
    ],
)
def test_inputs_are_rounded_by_the_engine_of_a_pair_that_holds_the_weights(
    images: str, decoder: str, vision: str, rounding: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity_gate, "calibration_facts", lambda _: None)
    targets = {"onnxruntime": {"int4_inputs": decoder}, "openvino": {"int4_inputs": vision, "matmul": "bfloat16"}}
    config = resolved(BuildConfig(precision="int4", targets=targets))
    artifact = quantized_to({"vision_model.linear": images, "language_model.linear": "int4"})
    for target, vision_target in (("onnxruntime", "openvino"), ("openvino", "onnxruntime")):
        options = check_options(config, target, tiny_spec(), artifact, max_new_tokens=4, vision_target=vision_target)
        assert options.compute == "bfloat16", "the looser limits hold"
        if target == "onnxruntime":
            assert options.rounding == rounding
            assert options.rounds_inputs == options.quantized_inputs == bool(rounding)
    alone = check_options(config, "openvino", tiny_spec(), artifact, max_new_tokens=4)
    assert (alone.rounds_inputs, alone.rounding) == (True, ())


@pytest.mark.parametrize(("target", "precision"), [("onnxruntime", "fp32"), ("gguf", "fp16")])
def test_both_gates_agree_on_nano(target: str, precision: Precision, nano_bundle: Path, tmp_path: Path) -> None:
    bundle, steps = nano_bundle, 12
    if target not in Bundle.open(bundle).config.targets:
        config = BuildConfig(precision=precision, targets=[target], parity=ParityConfig(enabled=False))
        bundle = build(config, tmp_path / "out").out
    run = GateRun(bundle, target, Checkpoint.open(), None, "cpu")
    config, spec = Bundle.open(bundle).config, run.checkpoint.spec
    options = check_options(config, target, spec, None, max_new_tokens=steps + 1)
    whole = run.whole(GeneratedQuestions(run.checkpoint, 3), options, ignore_progress)
    questions, options = GeneratedQuestions(run.checkpoint, 3), replace(options, max_new_tokens=steps)
    (streamed,) = run.streamed(questions, [options], tmp_path / "work", ignore_progress)
    # Both are fed the same tokens: nano answers as it was trained to, and those are the replies.
    for answered, fed in zip(whole.samples, streamed.streamed, strict=True):
        assert answered.reference.startswith(fed.reply)
        assert fed.top1_agreeing == fed.reply_tokens + 1 == steps + 1
    assert whole.passed
    assert streamed.passed
    expected, found = (
        {b.name: b for b in report.boundaries if b.name.partition(".")[0] not in LAYERS} for report in (whole, streamed)
    )
    assert list(expected) == list(found)
    for name, boundary in expected.items():
        assert_agrees(boundary, found[name])
    assert [step.step for step in streamed.decode_steps] == [step.step for step in whole.decode_steps]


def assert_agrees(whole: BoundaryResult, streamed: BoundaryResult) -> None:
    """The same checks, and errors within ten times each other: only the order of sums differs between the gates."""
    assert [(c.metric, c.limit, c.passed) for c in whole.checks] == [
        (c.metric, c.limit, c.passed) for c in streamed.checks
    ]
    for metric, value in whole.metrics.items():
        found = streamed.metrics[metric]
        if "error" in metric:
            assert value / 10 - 1e-6 <= found <= value * 10 + 1e-6, f"{whole.name} {metric}"
        elif metric != "snr_db":
            assert found == pytest.approx(value, abs=1e-6), f"{whole.name} {metric}"


@pytest.mark.parametrize("target", ["onnxruntime", "hf-unified", "compressed-tensors", "tensorrt-llm", "gguf"])
def test_a_quantized_engine_is_compared_behind_every_layer(target: str, tiny_quantized: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_quantized.parent / "model")
    run = GateRun(tiny_quantized, target, checkpoint, open_artifact(tiny_quantized, checkpoint), "cpu")
    # The graphs of this build compute in float16, but for the ONNX Runtime target's.
    options = CheckOptions("int4", compute="float16", max_new_tokens=3)
    gates = [replace(options, gate=gate) for gate in gate_names(run.artifact.recipe, options.own_weights)]
    report, original = run.streamed(GeneratedQuestions(checkpoint, 2), gates, tmp_path / "work", ignore_progress)
    assert (report.gate, original.gate) == ("arithmetic", "quantization")
    report.raise_if_failed()
    assert report.candidate == target
    limit = 1e-2 if target in ("gguf", "onnxruntime") else 1e-3  # these round inputs to 8 bits
    assert report.boundary("decoder_layer.0").metrics["relative_error"] < limit
    assert report.ranges is not None
    assert "language_model.model.layers.0" in {layer.layer for layer in report.ranges.layers}
    assert not (tmp_path / "work").exists()


@pytest.fixture(scope="module")
def tiny_quantized(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT4 bundle for every target that holds a block at a time; its checkpoint is `../model`."""
    folder = tmp_path_factory.mktemp("quantized")
    (folder / "model").symlink_to(tiny_model)
    config = BuildConfig(
        model=str(folder / "model"),
        precision="int4",
        recipe="int4-rtn",
        calibration=CalibrationConfig(samples=2),
        targets=["onnxruntime", "hf-unified", "compressed-tensors", "tensorrt-llm", "gguf"],
        parity=ParityConfig(enabled=False),
    )
    return build(config, folder / "out").out


def test_a_build_streams_its_gate_where_the_config_says_so(tiny_model: Path, tmp_path: Path) -> None:
    parity = ParityConfig(gate="streamed", streamed_questions=1, streamed_reply_tokens=2)
    out = build(BuildConfig(model=str(tiny_model), parity=parity), tmp_path / "out").out
    report = read_report(out / "report")
    assert report.passed
    assert [(sample.reply_tokens, sample.top1_agreeing) for sample in report.streamed] == [(2, 3)]
    assert "decoder_layer.0" in {boundary.name for boundary in report.boundaries}
    page = (out / "report" / "parity.html").read_text(encoding="utf-8")
    assert "Error by layer" in page
    assert "1 decoder layer" in page
    assert not (out / ".work").exists()


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_a_target_without_blocks_is_not_streamed(target: str, tiny_model: Path) -> None:
    config = BuildConfig(model=str(tiny_model), targets=[target], parity=ParityConfig(gate="streamed"))
    with pytest.raises(CapabilityError, match="a block at a time"):
        choose_gate(config, target, Checkpoint.open(tiny_model).spec, {})


@pytest.mark.parametrize("gate", ["auto", "streamed", "whole"])
def test_the_stages_of_a_check_are_counted_before_the_first_begins(
    gate: str, tiny_quantized: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, model = Bundle.open(tiny_quantized), tiny_quantized.parent / "model"
    asked = ParityConfig(questions=1, max_new_tokens=2, streamed_questions=1, streamed_reply_tokens=2)
    config = bundle.config.model_copy(update={"parity": asked})
    schemes = resolve(load_recipe("int4-rtn"), bundle.spec)
    memory = gate_memory_of(config, "onnxruntime", bundle.spec, schemes)
    available = memory.whole - 1 if gate == "auto" else 2 * memory.whole
    monkeypatch.setattr("r1v_export.pipeline.gate_memory.available_bytes", lambda: available)
    options = (
        "--model",
        model,
        "--questions",
        1,
        "--max-new-tokens",
        2,
        "--gate",
        gate,
        "--vision-target",
        "onnxruntime",
    )
    main.run(["check", str(tiny_quantized), *map(str, options), "--target", "onnxruntime"])
    counted = re.findall(r"^\[(\d)/(\d)\]", capsys.readouterr().err, re.MULTILINE)
    stages = 4 if gate == "whole" else 3
    assert counted == [(str(number), str(stages)) for number in range(1, stages + 1)]


@pytest.mark.parametrize("limit_bytes", [0, 4_000_000])
def test_what_many_questions_spill_is_what_is_planned(
    limit_bytes: int, tiny_quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, checkpoint = Bundle.open(tiny_quantized), Checkpoint.open(tiny_quantized.parent / "model")
    for module in ("parity.streamed", "pipeline.streamed_gate_memory"):
        monkeypatch.setattr(f"r1v_export.{module}.ACTIVATION_MEMORY_BYTES", limit_bytes)
    put, taken = ActivationStore.put, []

    def weighed(store: ActivationStore, key: Hashable, array: np.ndarray) -> None:
        put(store, key, array)
        taken.append(sum(path.stat().st_size for path in store.folder.glob("*.npy")))

    monkeypatch.setattr(ActivationStore, "put", weighed)
    run = GateRun(tiny_quantized, "hf-unified", checkpoint, open_artifact(tiny_quantized, checkpoint), "cpu")
    options = CheckOptions("int4", compute="float16", max_new_tokens=4)
    gates = [replace(options, gate=gate) for gate in gate_names(run.artifact.recipe, options.own_weights)]
    run.streamed(GeneratedQuestions(checkpoint, 12), gates, tmp_path / "work", ignore_progress)
    parity = ParityConfig(streamed_questions=12, streamed_reply_tokens=4)
    config = bundle.config.model_copy(update={"parity": parity})
    schemes = resolve(load_recipe("int4-rtn"), bundle.spec)
    assert 0 < max(taken) <= gate_memory_of(config, "hf-unified", bundle.spec, schemes).spilled <= 4 * max(taken)


def test_a_disk_too_small_for_so_many_questions_is_refused_before_any_is_asked(
    tiny_quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("r1v_export.pipeline.streamed_gate_memory.ACTIVATION_MEMORY_BYTES", 10**6)
    monkeypatch.setattr("r1v_export.pipeline.check.free_bytes", lambda folder: 10**6)
    command = ["check", str(tiny_quantized), "--model", str(tiny_quantized.parent / "model"), "--gate", "streamed"]
    assert main.run([*command, "--questions", "200", "--target", "hf-unified"]) == 4
    said = capsys.readouterr()
    assert "disk is too small for what so many questions bring" in said.err
    assert "TMPDIR" in said.err
    assert not said.out
    parity = ParityConfig(gate="streamed", streamed_questions=200)
    config = BuildConfig(model=str(tiny_quantized.parent / "model"), parity=parity)
    (gate,) = (stage for stage in plan(config, tmp_path / "out") if stage.name == "onnxruntime-parity")
    assert gate.scratch_bytes > 10**6
    few = config.model_copy(update={"parity": ParityConfig(gate="streamed", streamed_questions=1)})
    assert plan(few, tmp_path / "out")[-1].scratch_bytes < gate.scratch_bytes / 100
