"""Builds from checkpoints that were quantized already: the same values in every target, and their own precision."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from onnx_ir import load as load_graph
from torch import Tensor, nn

import r1v_export
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.cli import main
from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.errors import ParityError, UsageError
from r1v_export.manifest import LOCAL_REPORTS
from r1v_export.parity.report import read_report
from r1v_export.pipeline.build import build, plan
from r1v_export.pipeline.calibration import calibration_warnings, open_artifact
from r1v_export.pipeline.imported import for_checkpoint
from r1v_export.pipeline.verify import verify_bundle
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.progress import Progress
from r1v_export.reference.model import Model, ReferenceEngine, load
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.open_runner import open_runner
from tests.compressed_checkpoints import compress
from tests.quantized_checkpoints import AWQ, GPTQ, GPTQ_8, Truth, pack_awq, pack_gptq, quantized_copy

NANO = Path(r1v_export.__file__).parent / "nano" / "model"
IMAGES = Path(__file__).parents[2] / "examples" / "images"
CHART = IMAGES / "05-chart.png"
NO_PARITY = ParityConfig(enabled=False)


@pytest.fixture(scope="module")
def awq(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    folder = tmp_path_factory.mktemp("awq") / "tiny-awq"
    return folder, quantized_copy(tiny_model, folder, pack_awq, AWQ)


@pytest.fixture(scope="module")
def gptq(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    folder = tmp_path_factory.mktemp("gptq") / "tiny-gptq"
    return folder, quantized_copy(tiny_model, folder, pack_gptq, GPTQ | {"sym": True}, symmetric=True)


def test_awq_quantized_values_are_in_the_graph_and_onnx_runtime_computes_them(awq, tmp_path):
    folder, truth = awq
    config = BuildConfig(model=str(folder), parity=ParityConfig(questions=1, max_new_tokens=4))
    built = build(config, tmp_path / "out")
    assert built.manifest.precision == "int4"
    assert built.manifest.parity == {"onnxruntime": "passed"}
    assert not (built.out / "report" / "quantization").exists()  # there is no original to compare with
    graph = load_graph(tmp_path / "out" / "graphs" / "decoder.onnx").graph
    for linear, (qweight, scale, zero) in truth.items():
        for part, expected in (("qweight", qweight), ("scale", scale), ("zero_point", zero)):
            stored = graph.initializers[f"{linear}.weight.T.{part}"].const_value.numpy()
            assert (stored.astype("float32") == expected.T.float().numpy()).all()


def test_symmetric_gptq_becomes_a_unified_checkpoint_with_the_same_quantized_values(gptq, tmp_path):
    folder, truth = gptq
    parity = ParityConfig(questions=1, max_new_tokens=4)
    built = build(BuildConfig(model=str(folder), parity=parity, targets=("hf-unified",)), tmp_path / "out")
    assert built.manifest.parity == {"hf-unified": "passed"}
    verify_bundle(built.out, Progress(quiet=True))
    unified = Checkpoint.open(built.out / "engines" / "hf-unified")
    assert unified.quantized.format.method == "modelopt"
    for linear, (qweight, scale, _) in truth.items():
        decoded = unified.quantized.linears[linear].decode()
        assert (decoded.qweight == qweight - 8).all()
        assert (decoded.scale == scale.float()).all()
    artifact = open_artifact(built.out, Checkpoint.open(folder))
    assert set(artifact.schemes) == set(truth)


def test_zero_points_have_no_place_in_a_unified_checkpoint(awq, tmp_path):
    with pytest.raises(UsageError, match=r"(?s)does not hold this quantization.*fix: +another target"):
        build(BuildConfig(model=str(awq[0]), parity=NO_PARITY, targets=("hf-unified",)), tmp_path / "out")


@pytest.mark.parametrize("target", ["hf-unified", "tensorrt-llm"])
def test_8_bits_without_8_bit_inputs_have_no_place_in_other_formats(tiny_model, tmp_path, target):
    quantized_copy(tiny_model, tmp_path / "model", partial(pack_gptq, bits=8), GPTQ_8, symmetric=True)
    with pytest.raises(UsageError, match=r"(?s)(layout does not hold|has no format).*another target"):
        plan(BuildConfig(model=str(tmp_path / "model"), parity=NO_PARITY, targets=(target,)), tmp_path / "out")


def test_r1v_nano_in_8_bits_and_act_order_passes_its_gates_and_answers_what_the_chart_shows(tmp_path):
    config = GPTQ_8 | {"desc_act": True, "group_size": 64}
    quantized_copy(NANO, tmp_path / "model", partial(pack_gptq, bits=8), config, symmetric=True, rounded=True)
    parity = ParityConfig(questions=2, max_new_tokens=32)
    built = build(BuildConfig(model=str(tmp_path / "model"), parity=parity), tmp_path / "out")
    assert (built.manifest.precision, built.manifest.parity) == ("int8", {"onnxruntime": "passed"})
    report = read_report(built.out / "report")
    assert report.texts.nll < report.texts.unigram_nll / 10
    assert open_runner(built.out).ask("How tall is the green bar?", CHART).text == "5"


@pytest.mark.parametrize("target", ["hf-unified", "tensorrt-llm"])
def test_act_order_has_no_place_in_formats_without_g_idx(tiny_model, tmp_path, target):
    quantized_copy(tiny_model, tmp_path / "model", pack_gptq, GPTQ | {"desc_act": True, "sym": True}, symmetric=True)
    with pytest.raises(UsageError) as caught:
        plan(BuildConfig(model=str(tmp_path / "model"), parity=NO_PARITY, targets=(target,)), tmp_path / "out")
    assert "g_idx" in caught.value.found
    assert "--target compressed-tensors, onnxruntime or tensorrt" in caught.value.fix


def test_r1v_nano_in_act_order_passes_its_gates_and_answers_what_the_chart_shows(tmp_path):
    quantized_copy(NANO, tmp_path / "model", pack_gptq, GPTQ | {"desc_act": True}, rounded=True)
    parity = ParityConfig(questions=2, max_new_tokens=32)
    built = build(BuildConfig(model=str(tmp_path / "model"), parity=parity), tmp_path / "out")
    assert built.manifest.parity == {"onnxruntime": "passed"}
    report = read_report(built.out / "report")
    assert report.texts.nll < report.texts.unigram_nll / 10
    assert open_runner(built.out).ask("How tall is the green bar?", CHART).text == "5"


COMPRESSED = {
    "pack-quantized, zero points": ({"num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": False}, None),
    "pack-quantized, act-order": ({"num_bits": 4, "strategy": "group", "group_size": 128, "actorder": "group"}, None),
    "pack-quantized, 8 bits": ({"num_bits": 8, "strategy": "channel"}, None),
    "float-quantized": (
        {"num_bits": 8, "type": "float", "strategy": "tensor"},
        {"num_bits": 8, "type": "float", "strategy": "tensor"},
    ),
    "float-quantized, per token": (
        {"num_bits": 8, "type": "float", "strategy": "channel"},
        {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    ),
    "int-quantized": ({"num_bits": 8, "strategy": "channel"}, {"num_bits": 8, "strategy": "tensor"}),
    "int-quantized, per token": (
        {"num_bits": 8, "strategy": "channel"},
        {"num_bits": 8, "strategy": "token", "dynamic": True},
    ),
}


def answer(model: Model, checkpoint: Checkpoint, question: str, image: Path) -> str:
    """What a model answers in PyTorch."""
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    pipeline = describe_pipeline(checkpoint.spec, tokenizer, checkpoint.generation_config)
    return EngineRunner(ReferenceEngine(model), tokenizer, pipeline).ask(question, image).text


@pytest.fixture(scope="module")
def largest_inputs() -> dict[str, float]:
    """Linear of r1v-nano -> the largest magnitude of its inputs while it answers a question."""
    checkpoint, largest = Checkpoint.open(NANO), {}
    model = load(checkpoint)

    def observe(name: str, x: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), float(x.abs().max()))

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, name=name: observe(name, inputs[0]))
    answer(model, checkpoint, "How many bars are there?", CHART)
    return largest


@pytest.mark.parametrize("case", COMPRESSED)
def test_r1v_nano_compressed_by_compressed_tensors_passes_its_gates_and_answers_as_the_package_decompresses_it(
    tmp_path, largest_inputs, case
):
    weights, inputs = COMPRESSED[case]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    config = {"config_groups": {"group_0": group}, "ignore": ["re:vision_model.*", "re:mlp1.*", "re:.*lm_head"]}
    truth = compress(NANO, tmp_path / "model", config, largest_inputs=largest_inputs)
    parity = ParityConfig(questions=2, max_new_tokens=32)
    built = build(BuildConfig(model=str(tmp_path / "model"), parity=parity), tmp_path / "out")
    assert built.manifest.parity == {"onnxruntime": "passed"}
    decompressed = load(Checkpoint.open(NANO))
    for name, weight in truth.weights.items():
        decompressed.get_submodule(name).weight.copy_(weight.float())
    question = "How tall is the green bar?"
    found = open_runner(built.out).ask(question, CHART).text
    assert found == answer(decompressed, Checkpoint.open(NANO), question, CHART) == "5"


@pytest.mark.parametrize(
    ("calibration", "found"),
    [
        ({"data": "images"}, "--calib images"),
        ({"samples": 128}, "--samples 128"),
        ({"effort": "quick"}, "--effort quick"),
        ({"shards": 2}, "--shards 2"),
        ({"matmul_precision": "float32"}, "--matmul-precision float32"),
        ({"activation_memory": "1GB"}, "--activation-memory 1GB"),
        ({"saved_share": 0.5}, "--saved-share 0.5"),
        ({"artifact": "calibration"}, "--calibrated calibration"),
    ],
)
def test_what_only_a_calibration_reads_is_refused_before_any_work(awq, tmp_path, calibration, found):
    config = BuildConfig(model=str(awq[0]), precision="int4", calibration=CalibrationConfig(**calibration))
    with pytest.raises(UsageError, match="quantized already") as caught:
        for_checkpoint(config, Checkpoint.open(awq[0]))
    assert (caught.value.found, caught.value.fix) == (found, "omit it")


def test_an_option_of_a_calibration_is_refused_by_the_command(awq, tmp_path, capsys):
    assert main.run(["build", str(awq[0]), "--precision", "int4", "--samples", "8", "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "quantized already" in error
    assert "--samples 8" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields", [{"precision": "fp32"}, {"precision": "fp8"}, {"precision": "int4", "recipe": "int4-awq"}]
)
def test_another_precision_or_a_recipe_is_refused_before_any_work(awq, tmp_path, fields):
    with pytest.raises(UsageError, match="quantized already") as caught:
        plan(BuildConfig(model=str(awq[0]), **fields), tmp_path / "out")
    assert caught.value.fix == "omit it"
    assert not (tmp_path / "out").exists()


def test_its_own_precision_may_be_named(awq, tmp_path):
    stages = plan(BuildConfig(model=str(awq[0]), precision="int4"), tmp_path / "out")
    assert "calibration" in [stage.name for stage in stages]


def test_zero_points_of_the_other_convention_are_read_right_and_the_build_warns(tmp_path):
    config = GPTQ | {"checkpoint_format": "gptq"}
    quantized_copy(NANO, tmp_path / "model", partial(pack_gptq, offset=0), config, rounded=True)
    parity = ParityConfig(questions=2, max_new_tokens=32)
    built = build(BuildConfig(model=str(tmp_path / "model"), parity=parity), tmp_path / "out")
    report = read_report(built.out / "report")
    assert report.texts.nll < report.texts.unigram_nll / 10
    assert any("read as gptq_v2" in warning for warning in report.calibration.warnings)
    assert any("read as gptq_v2" in warning for warning in calibration_warnings(built.out))


def test_meaningless_quantized_values_fail_the_gate_although_both_endpoints_agree(tmp_path):
    quantized_copy(NANO, tmp_path / "model", pack_awq, AWQ)  # random values in a trained model
    parity = ParityConfig(questions=1, max_new_tokens=4)
    with pytest.raises(ParityError, match="does not model text") as caught:
        build(BuildConfig(model=str(tmp_path / "model"), parity=parity), tmp_path / "out")
    assert caught.value.exit_code == 3
    report = read_report(tmp_path / "out" / LOCAL_REPORTS)
    assert report.first_bad is None
    assert "does not model text" in (tmp_path / "out" / LOCAL_REPORTS / "parity.html").read_text()
