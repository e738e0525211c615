"""A gate that fails says what is true of it: what may be wrong, or what quantizing costs and what loses less."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from r1v_export.errors import ParityError
from r1v_export.parity import CheckOptions, Endpoint, ParityReport, ParitySample, check
from r1v_export.parity.metrics import LogitStatistics, TensorStatistics
from r1v_export.parity.quantization_cost import OTHER_RECIPES, OWN_ANSWERS, cost_causes, next_steps
from r1v_export.parity.report import failed_page, to_html, write_reports
from r1v_export.parity.schema import CalibrationFacts
from r1v_export.quantization.mixed_precision.sensitivity import Candidate, Selection, SensitivityTable
from r1v_export.quantization.recipe import names
from r1v_export.reference.model import Model

Damaged = Callable[[Callable[[Model], None]], Endpoint]

BY_RTN = CalibrationFacts(recipe="int4-rtn", samples=0, warnings=())
INT4 = CheckOptions("int4", gate="quantization", calibration=BY_RTN, max_new_tokens=3)


def rounded_layer(model: Model) -> None:
    """Far coarser than any recipe, so that the gate fails."""
    weight = model.language_model.model.layers[1].mlp.down_proj.weight
    weight.copy_((weight / weight.abs().max()).round() * weight.abs().max())


def test_the_gate_of_what_quantizing_costs_blames_no_weight(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample]
) -> None:
    def report(options: CheckOptions) -> ParityReport:
        return check(reference, damaged(rounded_layer), samples[:2], options)

    arithmetic, cost = report(CheckOptions("fp32", max_new_tokens=3)), report(INT4)
    assert (arithmetic.first_bad, cost.first_bad) == ("prefill", "prefill")
    assert any("a weight of a decoder layer" in cause for cause in arithmetic.causes)
    assert arithmetic.next_steps == ()
    with pytest.raises(ParityError, match=r"does not match[\s\S]*fix:.*a weight of a decoder layer"):
        arithmetic.raise_if_failed()
    assert cost.causes[0].startswith("quantizing by the recipe int4-rtn costs this")
    assert not any("wrong" in text for text in (*cost.causes, *cost.next_steps))
    with pytest.raises(ParityError, match=r"loses too much[\s\S]*found:.*int4-rtn costs this[\s\S]*fix:.*int4-gptq"):
        cost.raise_if_failed()


def test_the_page_of_the_gate_that_failed_says_what_to_try(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample], tmp_path: Path
) -> None:
    quantized = damaged(rounded_layer)
    reports = [
        check(original, quantized, samples[:2], replace(INT4, gate=gate))
        for original, gate in ((quantized, "arithmetic"), (reference, "quantization"))
    ]
    write_reports(reports, tmp_path)
    page = failed_page(tmp_path)
    assert page == tmp_path / "quantization" / "parity.html"
    assert 'try another recipe: <span class="whole">int4-gptq</span>' in page.read_text("utf-8")


def test_what_is_not_finite_is_no_cost(reference: Endpoint, damaged: Damaged, samples: list[ParitySample]) -> None:
    def nan_weight(model: Model) -> None:
        model.mlp1[3].weight[2, 2] = math.nan

    report = check(reference, damaged(nan_weight), samples[:1], INT4)
    assert (report.first_bad, report.next_steps) == ("projector", ())
    assert any("NaN in a weight" in cause for cause in report.causes)


def with_errors(layer: str, *errors: float) -> dict[str, TensorStatistics]:
    return {
        f"{layer}.{index}": TensorStatistics(1, sum_square_error=error**2, sum_square_reference=1.0)
        for index, error in enumerate(errors)
    }


def test_the_layers_that_lose_most_are_named_and_can_be_left_in_16_bits() -> None:
    found = {**with_errors("decoder_layer", 0.01, 0.2, 0.15, 0.18, 0.5), **with_errors("vision_block", 0.9)}
    causes, steps = cost_causes("prefill", found, INT4), next_steps("prefill", found, INT4)
    assert causes[1] == (
        "the relative error rises most in decoder_layer.4 (0.18 to 0.5), decoder_layer.1 (0.01 to 0.2), "
        "decoder_layer.3 (0.15 to 0.18)"
    )
    assert any('modules "language_model.*", layers [1, 3, 4], scheme null' in step for step in steps)
    (vision,) = [step for step in next_steps("vision", found, INT4) if "scheme null" in step]
    assert 'modules "vision_model.*", layers [0]' in vision


def test_without_layers_the_gate_that_compares_them_is_named() -> None:
    steps = next_steps("decode", {"decode": LogitStatistics()}, INT4)
    assert any("--gate streamed" in step for step in steps)
    assert not any("--samples" in step for step in steps)  # int4-rtn reads none
    assert any("--budget kl=0.1" in step for step in steps)


def test_a_gate_on_a_given_reply_names_the_one_on_own_answers_where_the_reply_was_read() -> None:
    own = CheckOptions("fp16", gate="quantization", own_weights="4-bit weights")
    for options in (INT4, own):
        assert next_steps("decode", {}, options, given_reply=True)[0] == OWN_ANSWERS
        assert OWN_ANSWERS not in next_steps("prefill", {}, options, given_reply=True)
        assert OWN_ANSWERS not in next_steps("decode", {}, options)


def test_what_a_budget_measured_is_used() -> None:
    def option(module: str, precision: str, kl: float) -> Candidate:
        return Candidate(module=module, precision=precision, size_bytes=1, snr_db=1.0, kl=kl)

    selection = Selection(budget="kl=0.02", precisions={"a": "int4", "b": "fp8"}, size_bytes=1, kl=0.2)
    options = (option("a", "int4", 0.01), option("a", "fp8", 9.0), option("b", "int4", 9.0), option("b", "fp8", 0.15))
    table = SensitivityTable(checkpoint="c", samples=1, fixed_bytes=1, options=options, selection=selection)
    facts = CalibrationFacts(recipe="mine", samples=32, warnings=(), sensitivity=table)
    chosen = CheckOptions("fp8", quantized_inputs=True, gate="quantization", calibration=facts)
    assert cost_causes("decode", {}, chosen)[1] == (
        "quantized alone, most is lost in b in fp8 (0.15 nats), a in int4 (0.01 nats)"
    )
    steps = next_steps("decode", {}, chosen)
    assert "try another recipe: r1v-export recipes list" in steps
    assert any("more samples than 32" in step for step in steps)
    assert any("kl=0.02" in step for step in steps)
    assert steps[-1] == "take more bits: --precision fp16 or bf16, which the target has"


def test_a_target_that_rounds_by_itself_has_no_gate_that_clears_its_files() -> None:
    own = CheckOptions("fp16", gate="quantization", own_weights="4-bit weights")
    (cause,) = cost_causes("embeds", {}, own)
    assert "if its files are right" in cause
    assert next_steps("embeds", {}, own) == ("choose a type of more bits in the target's block of the build file",)


def test_every_shipped_recipe_has_another_one_to_try() -> None:
    assert set(OTHER_RECIPES) == set(names())
    for recipe, other in OTHER_RECIPES.items():
        assert other.split(",")[0].split(" or ")[0] in set(names()) - {recipe}


def test_a_report_states_what_inputs_that_the_engine_rounds_cost(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample]
) -> None:
    def report(options: CheckOptions) -> ParityReport:
        return check(reference, damaged(rounded_layer), samples[:2], options)

    alone = report(CheckOptions("int4", quantized_inputs=True, rounds_inputs=True, max_new_tokens=3))
    decode = alone.boundary("decode").metrics
    assert alone.rounded_inputs is not None
    assert (alone.rounded_inputs.mean_kl, alone.rounded_inputs.top1_agreement) == (
        decode["mean_kl"],
        decode["top1_agreement"],
    )
    assert alone.rounded_inputs.sentence[1:] in to_html(alone)
    as_a_part = report(replace(INT4, rounds_inputs=True)).rounded_inputs
    assert as_a_part is not None
    assert as_a_part.mean_kl is None
    assert report(INT4).rounded_inputs is None
