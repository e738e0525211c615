"""The plan of a calibration: which blocks run, which are collected from, which are quantized."""

from __future__ import annotations

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.calibration.plan import CalibrationPlan
from r1v_export.quantization.groups import linear_groups
from r1v_export.quantization.recipe import load, names, parse

PROJECTOR_ONLY = parse(
    "{name: x, description: x, rules: [{modules: 'mlp1.*', scheme: {weights: {type: fp8, granularity: channel, "
    "algorithm: rtn}, inputs: {type: fp8, mode: static}}}]}"
)


@pytest.mark.parametrize("name", names())
def test_every_quantized_linear_is_in_a_quantized_block(synth_checkpoint: Checkpoint, name: str) -> None:
    plan = CalibrationPlan(synth_checkpoint.spec, load(name))
    found = {linear for b in plan.blocks if plan.is_quantized(b) for group in b.groups for linear in group.linears}
    assert set(plan.calibrated) <= found
    assert plan.calibrated == (plan.schemes if name not in ("int4-rtn", "fp8-rowwise") else {})


def test_weights_rounded_alone_need_no_statistics(synth_checkpoint: Checkpoint) -> None:
    plan = CalibrationPlan(synth_checkpoint.spec, load("int4-rtn"))
    assert plan.last_collected == -1
    assert not any(plan.is_collected(block) or plan.gram_groups(block) for block in plan.blocks)
    assert sum(plan.forward_cost(index, 10, 1) for index in range(len(plan.blocks))) == 0


def test_gptq_needs_the_gram_matrix_of_every_group_it_quantizes(synth_checkpoint: Checkpoint) -> None:
    plan = CalibrationPlan(synth_checkpoint.spec, load("int4-gptq"))
    needed = {name for block in plan.blocks for name in plan.gram_groups(block)}
    quantized = {g.name for g in linear_groups(plan.spec) if any(linear in plan.schemes for linear in g.linears)}
    assert needed == quantized


def test_a_quantized_cache_needs_every_decoder_layer(synth_checkpoint: Checkpoint) -> None:
    plan = CalibrationPlan(synth_checkpoint.spec, load("fp8-kv"))
    layers = [block for block in plan.blocks if plan.has_cache_scales(block)]
    assert len(layers) == synth_checkpoint.spec.language.num_layers
    assert all(plan.is_collected(block) and plan.is_quantized(block) for block in layers)


def test_no_block_after_the_last_collected_one_costs_a_forward_pass(synth_checkpoint: Checkpoint) -> None:
    plan = CalibrationPlan(synth_checkpoint.spec, PROJECTOR_ONLY)
    assert plan.blocks[plan.last_collected].name == "mlp1"
    assert plan.forward_cost(plan.last_collected, 10, 1) > 0
    assert plan.forward_cost(plan.last_collected + 2, 10, 1) == 0
