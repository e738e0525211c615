"""Products in bfloat16: what they compute, where they are chosen, and that they are recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import Matmul
from r1v_export.errors import UsageError
from r1v_export.quantization.algorithms.quantize_block import quantize_block
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.artifact.documents import read_stats
from r1v_export.quantization.calibration import matmul_precision
from r1v_export.quantization.calibration.blocks import blocks, materialize
from r1v_export.quantization.calibration.matmul_precision import BFloat16Linear, choose_matmul
from r1v_export.quantization.quantized_block import QuantizedBlock
from tests.quantization.calibration_cases import AWQ_RECIPE, CPU, KV_RECIPE, calibrated


@pytest.fixture(scope="module")
def float16(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(synthesize(tmp_path_factory.mktemp("float16") / "model", preset="nano", dtype="float16"))


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_multiplies_rounded_operands_and_adds_its_bias_in_float32(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = BFloat16Linear(64, 48, bias)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(48, 64, generator=generator))
    linear.weight = torch.nn.Parameter(linear.weight.bfloat16())
    x = torch.randn(5, 64, generator=generator)
    expected = x.bfloat16().double() @ linear.weight.double().T
    result = linear(x)
    assert result.dtype == torch.float32
    if bias:
        expected += linear.bias.double()
    torch.testing.assert_close(result.double(), expected, rtol=2**-8, atol=2**-6)


def test_weights_of_linears_stay_as_they_are_stored(synth_checkpoint: Checkpoint) -> None:
    for block in blocks(synth_checkpoint.spec):
        module = materialize(block, synth_checkpoint, torch.float32, CPU, "bfloat16")
        for name, child in module.named_modules():
            if isinstance(child, torch.nn.Linear):
                assert isinstance(child, BFloat16Linear)
                stored = synth_checkpoint.read(block.checkpoint_name(f"{name}.weight"))
                assert child.weight.dtype == torch.bfloat16
                assert torch.equal(child.weight, stored)
                assert child.bias is None or child.bias.dtype == torch.float32


def test_scales_are_nearly_those_of_float32_and_the_precision_is_recorded(
    synth_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    for matmul in ("float32", "bfloat16"):
        calibrated(synth_checkpoint, KV_RECIPE, tmp_path / matmul, matmul=matmul)
        assert read_stats(tmp_path / matmul).matmul == matmul
    exact, rounded = (Artifact.open(tmp_path / matmul, synth_checkpoint) for matmul in ("float32", "bfloat16"))
    assert exact.stats.fingerprint != rounded.stats.fingerprint
    differences = []
    for name, linear in exact.linears():
        other = rounded.linear(name)
        assert torch.equal(linear.scale, other.scale)
        assert linear.input_scale is not None
        assert other.input_scale is not None
        differences.append(abs(float(other.input_scale / linear.input_scale) - 1))
    assert 0 < max(differences) < 0.02


@pytest.mark.parametrize("matmul", ["float32", "bfloat16"])
def test_blocks_are_quantized_with_the_same_products(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, matmul: Matmul
) -> None:
    seen: list[object] = []

    def spied(*arguments: object) -> QuantizedBlock:
        seen.append(arguments[-1])
        return quantize_block(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("r1v_export.quantization.calibration.calibrate.quantize_block", spied)
    calibrated(synth_checkpoint, AWQ_RECIPE, tmp_path / "out", matmul=matmul)
    assert set(seen) == {matmul}


@pytest.mark.parametrize("recipe", [KV_RECIPE, AWQ_RECIPE])
def test_two_runs_give_the_same_bytes(synth_checkpoint: Checkpoint, tmp_path: Path, recipe: object) -> None:
    first, second = (
        calibrated(synth_checkpoint, recipe, tmp_path / name, matmul="bfloat16")  # type: ignore[arg-type]
        for name in ("first", "second")
    )
    assert first == second
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"  # type: ignore[attr-defined]


@pytest.mark.parametrize("has", [False, True])
def test_it_is_chosen_for_large_bfloat16_models_where_the_cpu_has_it(
    synth_checkpoint: Checkpoint, float16: Checkpoint, monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has})
    assert choose_matmul("auto", synth_checkpoint, "cpu") == "float32"
    monkeypatch.setattr(matmul_precision, "BFLOAT16_FROM_PARAMETERS", 1000)
    assert choose_matmul("auto", synth_checkpoint, "cpu") == ("bfloat16" if has else "float32")
    assert choose_matmul("auto", float16, "cpu") == "float32"
    assert choose_matmul("auto", synth_checkpoint, "cuda") == "float32"
    assert choose_matmul("float32", synth_checkpoint, "cpu") == "float32"
    assert choose_matmul("bfloat16", synth_checkpoint, "cpu") == "bfloat16"


def test_weights_that_it_would_round_are_refused(float16: Checkpoint) -> None:
    with pytest.raises(UsageError, match="would round this checkpoint's weights") as caught:
        choose_matmul("bfloat16", float16, "cpu")
    assert caught.value.found == "weights in float16"
