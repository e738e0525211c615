"""Quantized builds, from the command's configuration to a running engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file, save_file

from r1v_export.bundle import Bundle
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.errors import ParityError
from r1v_export.parity.comparison import check
from r1v_export.pipeline.build import build
from r1v_export.pipeline.calibration import CALIBRATION, open_artifact
from r1v_export.pipeline.check import Questions, check_bundle
from r1v_export.pipeline.parity_gate import (
    GeneratedQuestions,
    candidate_endpoint,
    check_options,
    reference_endpoint,
)
from r1v_export.progress import Progress
from r1v_export.quantization.recipe import load
from r1v_export.targets.openvino.engine_file import read_engine_file
from r1v_export.targets.openvino.target import OpenVinoTarget

Change = Callable[[np.ndarray], np.ndarray]

FEW = CalibrationConfig(samples=2)
EXACT = {"onnxruntime": {"int4_inputs": "exact"}}


def quantized(config: BuildConfig, precision: str, **changes: object) -> BuildConfig:
    return config.model_copy(update={"precision": precision, "calibration": FEW, **changes})


@pytest.fixture(scope="module", params=["fp8", "int8", "int4"])
def bundle(request: pytest.FixtureRequest, tiny_config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(quantized(tiny_config, request.param), tmp_path_factory.mktemp("quantized") / request.param).out


def test_the_graphs_hold_quantized_values_and_the_bundle_its_calibration(bundle: Path) -> None:
    weights = {"fp8": ir.DataType.FLOAT8E4M3FN, "int8": ir.DataType.INT8, "int4": ir.DataType.INT4}[bundle.name]
    decoder = ir.load(bundle / "graphs" / "decoder.onnx")
    qweight = [v for name, v in decoder.graph.initializers.items() if name.endswith("_proj.weight.T.qweight")]
    assert len(qweight) == 7
    assert {value.dtype for value in qweight} == {weights}
    assert {path.name for path in (bundle / CALIBRATION).iterdir()} == {
        *(("qweight.json",) if bundle.name == "int4" else ()),  # GPTQ's follow from nothing else: the graph's files
        "recipe.yaml",
        "scales.safetensors",
        "stats.json",
    }


def test_the_engine_computes_what_the_fake_quantized_model_computes(bundle: Path, tiny_model: Path) -> None:
    checkpoint = Checkpoint.open(tiny_model)
    artifact = open_artifact(bundle, checkpoint)
    reference = reference_endpoint(checkpoint, "cpu", artifact)
    candidate = candidate_endpoint(bundle, "onnxruntime", "cpu")
    samples = GeneratedQuestions(checkpoint, 2)
    options = check_options(Bundle.open(bundle).config, "onnxruntime", checkpoint.spec, artifact, max_new_tokens=4)
    report = check(reference, candidate, samples, options)
    assert report.passed, report.first_bad


def test_groups_in_activation_order_pass_the_gates_of_graphs_and_checkpoints(
    tiny_config: BuildConfig, tmp_path: Path
) -> None:
    recipe, targets = tmp_path / "recipe.yaml", ("onnxruntime", "compressed-tensors")
    recipe.write_text(load("int4-gptq").to_yaml().replace("act_order: static", "act_order: group"))
    parity = tiny_config.parity.model_copy(update={"enabled": True, "questions": 1, "max_new_tokens": 4})
    config = quantized(tiny_config, "int4", recipe=str(recipe), targets={name: {} for name in targets}, parity=parity)
    built = build(config, tmp_path / "out")
    assert built.manifest.parity == dict.fromkeys(targets, "passed")
    file = read_engine_file(built.out / "engines/onnxruntime/decoder/openvino")
    orders = [weight for name, weight in file.weights["decoder"].items() if "input_order" in name]
    assert {weight.type for weight in orders} == {"i32"}, "OpenVINO takes them as they are, too"
    if OpenVinoTarget().why_not_decoder() is None:
        assert set(built.manifest.decoder_parity.values()) == {"passed"}
    graph = ir.load(built.out / "graphs" / "decoder.onnx").graph
    gathered = [node for node in graph if node.op_type == "Gather" and "input_order" in node.inputs[1].name]
    assert len(gathered) == 4, "one each for q/k/v, o, gate/up and down"


SCALE = "language_model.model.layers.0.mlp.down_proj.weight"


def shuffled(scale: np.ndarray) -> np.ndarray:
    return scale[..., ::-1]


def corrupted(scale: np.ndarray) -> np.ndarray:
    """As if a bit of one exponent had flipped."""
    changed = scale.copy()
    changed.flat[3] *= 16
    return changed


def change_graph(bundle: Path, change: Change) -> None:
    """Overwrite a scale among the decoder's weights, in the graph's [in, out] order."""
    initializers = ir.load(bundle / "graphs" / "decoder.onnx").graph.initializers
    stored = initializers[f"{SCALE}.T.scale"].const_value
    assert isinstance(stored, ir.ExternalTensor)
    changed = np.ascontiguousarray(change(stored.numpy().copy())).tobytes()
    with (bundle / "graphs" / stored.location).open("r+b") as file:
        file.seek(stored.offset or 0)
        file.write(changed)


def change_artifact(bundle: Path, change: Change) -> None:
    """Overwrite the same scale in the calibration, in [out, in] order."""
    path = bundle / CALIBRATION / "scales.safetensors"
    scales = load_file(path)
    scales[f"{SCALE}_scale"] = np.ascontiguousarray(change(scales[f"{SCALE}_scale"].T).T)
    save_file(scales, path)


@pytest.mark.parametrize("change", [shuffled, corrupted])
@pytest.mark.parametrize("where", [change_graph, change_artifact])
def test_a_wrong_scale_is_caught_by_the_check_of_the_bundle_and_its_linear_named(
    bundle: Path, tiny_model: Path, tmp_path: Path, where: Callable[[Path, Change], None], change: Change
) -> None:
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    where(damaged, change)
    asked = Questions(1, (), max_new_tokens=4)
    with pytest.raises(ParityError, match=r"layers\.0\.mlp\.down_proj") as caught:
        check_bundle(damaged, None, str(tiny_model), asked, (), "cpu", Progress(quiet=True), blocks=False, command="")
    assert caught.value.found is not None
    assert "differ, by factors of" in str(caught.value.found)


def test_wrong_int4_scales_show_in_the_numbers_too(tiny_config: BuildConfig, tiny_model: Path, tmp_path: Path) -> None:
    """With exact inputs: the limits of 8-bit inputs are wider than what one wrong scale does."""
    parity = ParityConfig(enabled=False)
    bundle = build(quantized(tiny_config, "int4", targets=EXACT, parity=parity), tmp_path / "out").out
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    change_graph(damaged, shuffled)
    checkpoint = Checkpoint.open(tiny_model)
    artifact = open_artifact(damaged, checkpoint)
    reference = reference_endpoint(checkpoint, "cpu", artifact)
    candidate = candidate_endpoint(damaged, "onnxruntime", "cpu")
    options = check_options(Bundle.open(bundle).config, "onnxruntime", checkpoint.spec, artifact, max_new_tokens=4)
    samples = GeneratedQuestions(checkpoint, 1)
    report = check(reference, candidate, samples, options)
    assert report.first_bad == "prefill"


@pytest.mark.parametrize(("kind", "qweight_dtype"), [("fp8", ir.DataType.FLOAT8E4M3FN), ("int8", ir.DataType.INT8)])
def test_a_quantized_cache_is_computed_by_engine_and_reference_alike(
    tiny_config: BuildConfig, tmp_path: Path, kind: str, qweight_dtype: ir.DataType
) -> None:
    recipe = tmp_path / "kv.yaml"
    recipe.write_text(load("int4-rtn").to_yaml().replace("kv_cache: null", f"kv_cache: {kind}"))
    out = build(quantized(tiny_config, "int4", recipe=str(recipe), targets=EXACT), tmp_path / "out").out
    decoder = ir.load(out / "graphs" / "decoder.onnx").graph
    nodes = [node for node in decoder if node.op_type == "QuantizeLinear"]
    assert [(node.name, node.outputs[0].dtype) for node in nodes] == [
        (f"language_model.model.layers.0.self_attn.{what}/QuantizeLinear", qweight_dtype) for what in ("key", "value")
    ]
    checkpoint = Checkpoint.open(tiny_config.model)
    artifact = open_artifact(out, checkpoint)
    assert artifact is not None
    options = check_options(Bundle.open(out).config, "onnxruntime", checkpoint.spec, artifact, max_new_tokens=8)
    candidate = candidate_endpoint(out, "onnxruntime", "cpu")
    divergence = {}
    for scales in (artifact.cache_scales, {}):
        reference = reference_endpoint(checkpoint, "cpu", artifact)
        for layer in reference.engine.model.language_model.model.layers if not scales else ():  # type: ignore[attr-defined]
            layer.self_attn.cached_key = layer.self_attn.cached_value = torch.nn.Identity()
        samples = GeneratedQuestions(checkpoint, 2)
        report = check(reference, candidate, samples, options)
        assert report.passed or not scales
        divergence[bool(scales)] = report.boundary("decode").metrics["mean_kl"]
    assert divergence[True] < divergence[False] / 20


def test_a_stopped_calibration_goes_on_and_a_finished_build_is_up_to_date(
    tiny_config: BuildConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tree: Callable[[Path], dict[str, bytes]],
) -> None:
    config = quantized(tiny_config, "fp8")
    whole = build(config, tmp_path / "whole").out
    quantize, done = _stop_after(2)
    with monkeypatch.context() as stopped:
        stopped.setattr("r1v_export.quantization.calibration.calibrate.quantize_block", quantize)
        with pytest.raises(KeyboardInterrupt):
            build(config, tmp_path / "stopped")
    assert len(done) == 2
    build(config, tmp_path / "stopped")
    assert tree(tmp_path / "stopped") == tree(whole)
    assert build(config, whole).ran == ()


def _stop_after(blocks: int) -> tuple[Callable[..., object], list[object]]:
    """The real function, interrupted when it is called once more than `blocks` times; and its results so far."""
    from r1v_export.quantization.algorithms.quantize_block import quantize_block

    done: list[object] = []

    def quantize(*args: object, **kwargs: object) -> object:
        if len(done) == blocks:
            raise KeyboardInterrupt
        done.append(quantize_block(*args, **kwargs))  # type: ignore[arg-type]
        return done[-1]

    return quantize, done


def test_a_recipe_of_ones_own_is_used_and_named_in_the_bundle(tiny_config: BuildConfig, tmp_path: Path) -> None:
    own = tmp_path / "projector-only.yaml"
    own.write_text(
        "name: projector-only\ndescription: two linears\nrules:\n  - modules: mlp1.*\n"
        "    scheme: {weights: {type: fp8, granularity: channel, algorithm: rtn}, inputs: {type: fp8, mode: static}}\n"
    )
    built = build(quantized(tiny_config, "fp8", recipe=str(own)), tmp_path / "out")
    artifact = open_artifact(built.out, Checkpoint.open(tiny_config.model))
    assert artifact is not None
    assert list(artifact.schemes) == ["mlp1.1", "mlp1.3"]
    assert "--recipe projector-only.yaml" in built.manifest.command
