"""Collected statistics are of the tensors that the model computes with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import InputError
from r1v_export.quantization.calibration.blocks import blocks, materialize
from r1v_export.quantization.calibration.dataset import CalibrationSample
from r1v_export.quantization.groups import linear_groups
from r1v_export.quantization.kv_scales import key_name, value_name
from r1v_export.quantization.statistics.collector import collect_statistics
from r1v_export.reference import language
from r1v_export.reference.model import Model
from tests.quantization.calibration_cases import chain, collect, logits

CPU = torch.device("cpu")


def test_statistics_are_of_what_enters_the_models_linears(
    synth_checkpoint: Checkpoint, model: Model, sample: CalibrationSample
) -> None:
    entered: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(linear).register_forward_pre_hook(
            lambda module, args, linear=linear: entered.update({linear: args[0].detach().flatten(0, -2)})
        )
        for group in linear_groups(model.spec)
        for linear in group.linears
    ]
    logits(model, sample)
    for hook in hooks:
        hook.remove()
    for block, module, x in chain(synth_checkpoint, sample):
        with collect(block, module, with_gram=True) as collector:
            block.forward(module, sample, x)
        seen = collector.statistics()
        for group in block.groups:
            for linear in group.linears:
                inputs_NI = entered[linear]
                close = {"rtol": 1e-4, "atol": 1e-5}
                torch.testing.assert_close(
                    seen.activations[group.name].channel_absmax, inputs_NI.abs().amax(0), **close
                )
                torch.testing.assert_close(seen.grams[group.name], inputs_NI.T @ inputs_NI, rtol=1e-3, atol=1e-3)
                assert seen.activations[group.name].rows == len(inputs_NI)


def test_collected_keys_and_values_are_what_the_cache_holds(
    synth_checkpoint: Checkpoint, model: Model, sample: CalibrationSample
) -> None:
    seq = len(sample.token_ids)
    for block, module, x in chain(synth_checkpoint, sample):
        if not block.collected_outputs():
            continue
        with collect(block, module) as collector:
            block.forward(module, sample, x)
        index = int(block.name.rpartition(".")[2])
        empty = model.language_model.empty_cache(1, seq)[0]
        step = language.CacheStep(torch.arange(seq)[None], torch.tensor([0]), torch.tensor([seq]))
        rotary = language.rotary_tables(model.spec.language, seq)
        _, cache = model.language_model.model.layers[index](x, rotary, step, empty)
        for name, cached_1KSD in ((key_name, cache.key), (value_name, cache.value)):
            expected = cached_1KSD[0].abs().amax(1).flatten()
            found = collector.statistics().activations[name(block.name)].channel_absmax
            torch.testing.assert_close(found, expected)


def test_hooks_are_gone_afterwards(synth_checkpoint: Checkpoint, sample: CalibrationSample) -> None:
    for block, module, x in chain(synth_checkpoint, sample):
        with collect(block, module) as collector:
            pass
        block.forward(module, sample, x)
        assert all(seen.rows == 0 for seen in collector.statistics().activations.values())


def test_histograms_are_collected_where_wanted(synth_checkpoint: Checkpoint, sample: CalibrationSample) -> None:
    block = blocks(synth_checkpoint.spec)[1]
    module = materialize(block, synth_checkpoint, torch.float32, CPU)
    hidden = torch.randn(sample.tiles, 65, synth_checkpoint.spec.vision.hidden_size)
    inputs = {block.module_name(group.linears[0]): group for group in block.groups}
    found = {}
    for wanted in (False, True):
        with collect_statistics(module, inputs, (), {}, wanted) as collector:
            block.forward(module, sample, hidden)
        found[wanted] = collector.statistics().activations
    for name, seen in found[True].items():
        assert int(seen.histogram.sum()) == int(seen.rows) * len(seen.channel_absmax)
        assert not found[False][name].histogram.any()
        assert torch.equal(found[False][name].channel_absmax, seen.channel_absmax)
        assert torch.equal(found[False][name].channel_sum, seen.channel_sum)


def test_an_activation_that_is_not_finite_is_named_with_its_sample(
    synth_checkpoint: Checkpoint, sample: CalibrationSample
) -> None:
    block = blocks(synth_checkpoint.spec)[1]
    module = materialize(block, synth_checkpoint, torch.float32, CPU)
    module.get_parameter("norm2.weight").data.fill_(float("inf"))
    hidden = torch.randn(sample.tiles, 65, synth_checkpoint.spec.vision.hidden_size)
    with collect(block, module) as collector:
        collector.sample = "built-in 7"
        with pytest.raises(InputError, match="NaN or infinite") as caught:
            block.forward(module, sample, hidden)
    assert caught.value.where == "vision_model.encoder.layers.0.mlp.fc1, sample built-in 7"
