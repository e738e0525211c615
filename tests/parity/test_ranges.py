"""Magnitudes inside a model are compared with the range of the engine's type, whatever computed it here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from r1v_export.errors import ParityError
from r1v_export.parity.comparison import check
from r1v_export.parity.endpoints import Endpoint
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.report import to_html
from r1v_export.parity.samples import ParitySample
from r1v_export.parity.schema import LayerRange, ParityReport, RangeFacts
from r1v_export.quantization.algorithms.rtn import round_to_nearest
from r1v_export.quantization.apply.torch import FakeQuantLinear
from r1v_export.reference import operators
from r1v_export.reference.language import CacheStep, LayerCache, rotary_tables
from r1v_export.reference.magnitudes import recorded
from r1v_export.reference.model import Model, ReferenceEngine

LAYER = "language_model.model.layers.1"


def scaled(model: Model, factor: float) -> Model:
    """The same function, one channel of an MLP `factor` times as large inside."""
    model = copy.deepcopy(model)
    mlp = model.language_model.model.layers[1].mlp
    with torch.no_grad():
        mlp.up_proj.weight[3] *= factor
        mlp.down_proj.weight[:, 3] /= factor
    return model


@pytest.fixture
def compare(model: Model, reference: Endpoint, samples: list[ParitySample]) -> Callable[..., ParityReport]:
    def run(factor: float, compute: str, precision: str) -> ParityReport:
        endpoint = replace(reference, engine=ReferenceEngine(scaled(model, factor)))
        return check(endpoint, endpoint, samples[:2], CheckOptions(precision, compute, max_new_tokens=4, batch_size=2))

    return run


def test_an_activation_beyond_float16_fails_and_names_the_tensor_and_the_next_step(compare):
    report = compare(2.0**24, "float16", "fp16")
    assert report.first_bad is None  # both sides computed it in float32
    assert not report.passed
    assert [layer.layer for layer in report.ranges.beyond] == [LAYER]
    with pytest.raises(ParityError, match="overflows in float16") as caught:
        report.raise_if_failed()
    assert caught.value.where in (f"{LAYER}.mlp.down_proj: input", f"{LAYER}.mlp.up_proj: output")
    assert caught.value.fix == "build with --precision bf16 or fp32"
    assert caught.value.exit_code == 3
    page = to_html(report).replace("<wbr>", "")
    assert "overflows in float16" in page
    assert caught.value.where in page


@pytest.mark.parametrize(("compute", "precision"), [("float32", "fp32"), ("bfloat16", "bf16")])
def test_types_of_float32s_range_hold_it(compare, compute, precision):
    report = compare(2.0**24, compute, precision)
    assert report.passed
    assert report.ranges is None


def test_a_model_that_fits_passes_and_lists_every_layer(compare, model):
    report = compare(1.0, "float16", "fp16")
    assert report.passed
    assert not report.warnings
    layers = [layer.layer for layer in report.ranges.layers]
    for tower, count in (("vision_model.encoder", 3), ("language_model.model", 3)):
        assert [f"{tower}.layers.{i}" for i in range(count)] == [n for n in layers if n.startswith(f"{tower}.layers")]
    assert {"vision_model.embeddings.patch_embedding", "mlp1.1", "mlp1.3", "language_model.lm_head"} <= set(layers)
    assert ParityReport.model_validate_json(report.model_dump_json()).ranges == report.ranges
    assert "No layer comes within a factor of two" in to_html(report)


def test_more_than_half_of_the_range_is_a_warning(compare):
    peak = compare(2.0**24, "float16", "fp16").ranges.beyond[0].magnitude
    report = compare(2.0**24 * 50000 / peak, "float16", "fp16")
    assert report.passed
    (warning,) = report.warnings
    assert f"{LAYER}.mlp" in warning
    assert "close" in to_html(report)


@pytest.mark.parametrize(
    ("magnitude", "beyond", "close"),
    [(32752.0, 0, 0), (32753.0, 0, 1), (65504.0, 0, 1), (65505.0, 1, 0), (float("inf"), 1, 0)],
)
def test_the_limits_are_half_of_the_range_and_its_end(magnitude, beyond, close):
    layer = LayerRange(layer="a", tensor="a: input", magnitude=magnitude)
    facts = RangeFacts(dtype="float16", largest=65504.0, layers=(layer,))
    assert (len(facts.beyond), len(facts.close)) == (beyond, close)


def test_recorded_magnitudes_are_those_of_the_tensors(model):
    """Attention scores and the residual stream, computed here by hand from the modules' own parts."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 56, 56, generator=generator)
    block = model.vision_model.encoder.layers[0]
    with torch.no_grad(), recorded(model) as magnitudes:
        model.vision_model(pixels)
    with torch.no_grad():
        hidden = model.vision_model.embeddings(pixels)
        q, k, _ = block.attn.qkv(block.norm1(hidden)).unflatten(-1, (3, -1)).unbind(-2)
        q, k = (block.attn._split_heads(norm(x)) for norm, x in ((block.attn.q_norm, q), (block.attn.k_norm, k)))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        found = magnitudes.by_tensor()
    name = "vision_model.encoder.layers.0"
    assert found[f"{name}.attn: attention scores"] == pytest.approx(float(scores.abs().max()), rel=1e-5)
    with torch.no_grad():
        assert found[f"{name}: output"] == pytest.approx(float(block(hidden).abs().max()), rel=1e-5)


def test_scores_of_cached_attention_omit_slots_that_are_not_in_use(model, spec):
    attention = model.language_model.model.layers[0].self_attn
    (cache, *_) = model.language_model.empty_cache(1, 8)
    cache = LayerCache(cache.key + 1e6, cache.value)
    cache.key[:, :, :3] = 0.5
    x = torch.randn(1, 1, spec.language.hidden_size, generator=torch.Generator().manual_seed(2))
    step = CacheStep(torch.tensor([[3]]), torch.tensor([3]), torch.tensor([4]))
    with torch.no_grad(), recorded(model) as magnitudes:
        attention(x, rotary_tables(spec.language, 8), step, cache)
    scores = magnitudes.by_tensor()["language_model.model.layers.0.self_attn: attention scores"]
    assert 0 < scores < 1e3


def test_recording_leaves_the_model_as_it_was(model):
    before = operators.cached_attention
    with recorded(model):
        assert operators.cached_attention is not before
    assert operators.cached_attention is before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_nan_counts_as_infinite(model):
    with recorded(model) as magnitudes:
        magnitudes.record("x", torch.tensor([1.0, float("nan")]))
        magnitudes.record("x", torch.tensor([2.0]))
    assert magnitudes.by_tensor() == {"x": float("inf")}


@pytest.mark.parametrize(("shrink", "warned"), [(1.0, False), (1.5, False), (4.0, True)])
def test_inputs_beyond_what_a_static_scale_represents_are_listed_and_warned_of_beyond_twice(
    model, reference, samples, shrink, warned
):
    name = f"{LAYER}.mlp.gate_proj"
    with recorded(model) as magnitudes:
        check(reference, reference, samples[:1], CheckOptions("fp32", max_new_tokens=2))
    largest = magnitudes.by_tensor()[f"{name}: input"]
    quantized = copy.deepcopy(model)
    linear = replace(
        round_to_nearest(model.get_submodule(name).weight.detach(), "fp8"),
        input_type="fp8",
        input_scale=torch.tensor(largest / 448 / shrink),
    )
    quantized.set_submodule(name, FakeQuantLinear(linear))
    endpoint = replace(reference, engine=ReferenceEngine(quantized))
    options = CheckOptions("fp8", quantized_inputs=True, max_new_tokens=2)
    report = check(endpoint, endpoint, samples[:1], options)
    assert report.passed
    assert report.ranges is None
    expected = {} if shrink == 1.0 else {name: pytest.approx(shrink, rel=1e-4)}
    found = {s.linear: s.ratio for s in report.saturations}
    assert {k: v for k, v in found.items() if v > 1.0001} == expected
    assert bool(report.warnings) == warned
    assert not warned or (name in report.warnings[0] and name in to_html(report))
