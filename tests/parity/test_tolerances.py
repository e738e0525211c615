"""The table: complete, with a reason each, and refusing what it has no limits for."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from r1v_export.errors import UsageError
from r1v_export.parity.metrics import LogitStatistics, TokenStatistics
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.tolerances import (
    ARITHMETIC,
    TABLE,
    Boundary,
    Tolerance,
    ToleranceProfile,
    profile_for,
    tolerances,
)

ROW = {"boundary": "vision", "profile": "fp32", "metric": "relative_error", "at_most": 1e-5}
REASON = "because the sums are in another order"


@pytest.mark.parametrize("reason", [None, "", "   ", "because"])
def test_a_limit_without_a_reason_cannot_be_built(reason: str | None):
    with pytest.raises(ValidationError, match="reason"):
        Tolerance(**ROW, **({} if reason is None else {"reason": reason}))


@pytest.mark.parametrize("bounds", [{}, {"at_most": 1.0, "at_least": 0.0}])
def test_a_limit_has_exactly_one_bound(bounds: dict[str, float]):
    with pytest.raises(ValidationError, match="exactly one"):
        Tolerance(**{key: value for key, value in ROW.items() if key != "at_most"}, **bounds, reason=REASON)


def test_a_limit_holds_up_to_its_bound_and_never_for_nan():
    most, least = Tolerance(**ROW, reason=REASON), Tolerance(**ROW | {"at_most": None, "at_least": 0.9}, reason=REASON)
    assert most.holds(1e-5)
    assert not most.holds(1.1e-5)
    assert least.holds(0.9)
    assert not least.holds(0.89)
    assert not most.holds(math.nan)
    assert not least.holds(math.nan)
    assert not most.holds(math.inf)


@pytest.mark.parametrize("profile", ARITHMETIC)
@pytest.mark.parametrize("boundary", get_args(Boundary))
def test_every_boundary_has_a_tolerance(boundary: Boundary, profile: ToleranceProfile):
    # Where rounding is coarse, one flipped near tie changes all that is written after it; `decode` holds each choice.
    # Layers accumulate such flips over the depth; the logits behind them are held.
    free = (boundary == "tokens" and profile != "fp32") or (boundary == "decoder_layer" and profile == "8-bit inputs")
    assert bool(tolerances(boundary, profile)) != free


@pytest.mark.parametrize("profile", ["fp8", "int8", "int4", "8-bit weights", "4-bit weights"])
@pytest.mark.parametrize(
    "boundary", [b for b in get_args(Boundary) if b not in ("decoder_layer", "end_to_end", "tokens")]
)
def test_the_cost_of_quantizing_is_held_at_every_boundary(boundary: Boundary, profile: ToleranceProfile):
    assert tolerances(boundary, profile)


def test_arithmetic_has_the_tolerances_of_what_rounds_and_quantizing_those_of_its_precision():
    assert profile_for("arithmetic", "fp16", "float32", False) == "fp32"
    assert profile_for("arithmetic", "int4", "float32", False) == "fp32"
    assert profile_for("arithmetic", "int4", "bfloat16", False) == "bf16"
    assert profile_for("arithmetic", "int4", "float32", True) == "8-bit inputs"
    assert profile_for("quantization", "int4", "float32", True) == "int4"


def test_weights_that_a_target_rounds_by_itself_have_limits_of_their_own_whatever_the_precision():
    options = CheckOptions("fp16", "float16", own_weights="4-bit weights")
    assert replace(options, gate="quantization").profile == "4-bit weights"
    assert options.profile == "fp16"


def test_every_limit_is_on_a_metric_that_its_boundary_has():
    tensor_and_logits = LogitStatistics.of(np.zeros((1, 2)), np.zeros((1, 2))).metrics()
    tensor, tokens = LogitStatistics().tensor.metrics(), TokenStatistics().metrics()
    metrics = {"prompt": tokens, "tokens": tokens}
    metrics |= dict.fromkeys(("prefill", "decode", "end_to_end"), tensor_and_logits)
    assert all(row.metric in metrics.get(row.boundary, tensor) for row in TABLE)


def test_no_limit_stands_twice():
    keys = [(row.boundary, row.profile, row.metric) for row in TABLE]
    assert len(keys) == len(set(keys))


def test_float32_logits_have_the_promised_tolerance():
    for boundary in ("prefill", "decode", "end_to_end"):
        bounds = {row.metric: row.bound for row in tolerances(boundary, "fp32")}
        assert bounds["max_abs_error"] <= 1e-3
    assert {row.metric: row.bound for row in tolerances("tokens", "fp32")} == {"token_agreement": 1.0}


def test_float32_is_stricter_than_float16_and_that_than_bfloat16():
    for metric, boundary in (("relative_error", "vision"), ("relative_error", "projector")):
        bounds = [
            next(row.bound for row in tolerances(boundary, profile) if row.metric == metric)
            for profile in ("fp32", "fp16", "bf16")
        ]
        assert bounds == sorted(bounds)


def test_a_cost_without_limits_is_refused():
    with pytest.raises(UsageError, match="no tolerances for what quantizing to fp32 costs"):
        profile_for("quantization", "fp32", "float32", False)


def test_choices_are_held_but_for_near_ties_where_arithmetic_is_compared():
    rows = [row for row in TABLE if row.metric == "top1_agreement"]
    near_ties = {row.profile: row.near_tie for row in rows}
    assert near_ties["fp32"] == 1e-3
    assert 0 < near_ties["fp16"] < near_ties["bf16"] < near_ties["8-bit inputs"] <= 0.1
    assert all((row.near_tie is None) == (row.profile not in ARITHMETIC) for row in rows)


def test_only_greedy_choices_have_near_ties():
    with pytest.raises(ValidationError, match="near ties"):
        Tolerance(**ROW, near_tie=0.1, reason=REASON)


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4"])
def test_reasons_of_what_a_precision_costs_name_no_other(precision: ToleranceProfile):
    named = {word for row in TABLE if row.profile == precision for word in re.findall(r"FP8|INT8|INT4", row.reason)}
    assert named == {precision.upper()}


def test_what_was_measured_in_fp8_is_said_to_be_on_pages_of_every_quantized_precision():
    reasons = {row.reason for row in TABLE if row.profile == "8-bit inputs" and "FP8" in row.reason}
    assert len(reasons) == 1
    assert "measured with inputs in FP8" in reasons.pop()
