"""The chain of blocks is the reference model, taken apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.errors import CheckpointError, InputError
from r1v_export.quantization.calibration.blocks import Block, blocks, materialize
from r1v_export.quantization.calibration.dataset import CalibrationSample
from r1v_export.quantization.groups import linear_groups
from r1v_export.quantization.kv_scales import key_name, value_name
from r1v_export.quantization.statistics.collector import StatisticsCollector, collect_statistics
from r1v_export.reference import language
from r1v_export.reference.model import Model, load
from tests.quantization.calibration_cases import small_set, with_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sample(synth_checkpoint: Checkpoint) -> CalibrationSample:
    return small_set(synth_checkpoint, 1).samples[0]


@pytest.fixture(scope="module")
def model(synth_checkpoint: Checkpoint) -> Model:
    return load(synth_checkpoint)


def chain(checkpoint: Checkpoint, sample: CalibrationSample) -> Iterator[tuple[Block, nn.Module, Tensor | None]]:
    """Every block with its module and what comes in."""
    x: Tensor | None = None
    for block in blocks(checkpoint.spec):
        module = materialize(block, checkpoint, torch.float32, CPU)
        yield block, module, x
        x = block.forward(module, sample, x)


def collect(block: Block, module: nn.Module, with_gram: bool = False) -> AbstractContextManager[StatisticsCollector]:
    """Statistics of everything that can be collected in a block."""
    inputs = {block.module_name(group.linears[0]): group for group in block.groups}
    names = {group.name for group in block.groups} if with_gram else set[str]()
    return collect_statistics(module, inputs, names, block.collected_outputs())


def logits(model: Model, sample: CalibrationSample) -> Tensor:
    """Of every token, by the reference's own way through the whole model; with a cache, unlike the chain."""
    image_embeds = model.image_embeds(torch.from_numpy(sample.pixels()))
    ids = torch.tensor([sample.token_ids])
    embeds = model.embed(ids, image_embeds.flatten(0, 1))
    seq = ids.shape[1]
    step = language.CacheStep(torch.arange(seq)[None], torch.tensor([0]), torch.tensor([seq]))
    rotary = language.rotary_tables(model.spec.language, seq)
    cache = model.language_model.empty_cache(1, seq)
    return model.language_model(embeds, rotary, step, cache)[0]


def test_the_chain_ends_with_the_models_logits(
    synth_checkpoint: Checkpoint, model: Model, sample: CalibrationSample
) -> None:
    for block, module, x in chain(synth_checkpoint, sample):
        last = block.forward(module, sample, x)
    torch.testing.assert_close(last, logits(model, sample), rtol=1e-5, atol=1e-5)


def test_blocks_hold_every_tensor_of_the_checkpoint_once(synth_checkpoint: Checkpoint) -> None:
    names = []
    for block in blocks(synth_checkpoint.spec):
        with torch.device("meta"):
            names += [block.checkpoint_name(parameter) for parameter in block.build().state_dict()]
    assert sorted(names) == sorted(expected_tensors(synth_checkpoint.spec))


def test_blocks_hold_every_group_once(synth_checkpoint: Checkpoint) -> None:
    spec = synth_checkpoint.spec
    assert [group for block in blocks(spec) for group in block.groups] == list(linear_groups(spec))


def test_what_is_observed_is_what_enters_the_models_linears(
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


def test_observed_keys_and_values_are_what_the_cache_holds(
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


def test_a_sample_without_images_passes_through_the_vision_tower(synth_checkpoint: Checkpoint) -> None:
    sample = small_set(synth_checkpoint, 1).samples[0]
    image = synth_checkpoint.spec.image_token_id
    tokens = tuple(id_ for id_ in sample.token_ids if id_ != image)
    side = synth_checkpoint.spec.tiling.tile_size
    text = CalibrationSample(0, "text", "", tokens, 0, lambda: torch.zeros(0, 3, side, side).numpy())
    for block, module, x in chain(synth_checkpoint, text):
        with collect(block, module) as collector:
            result = block.forward(module, text, x)
        rows = {int(seen.rows) for seen in collector.statistics().activations.values()}
        assert rows <= {len(tokens) if block.name.startswith("language_model") else 0}
    assert result.shape[:2] == (1, len(tokens))


def test_rows_counts_what_enters_the_linears(synth_checkpoint: Checkpoint, sample: CalibrationSample) -> None:
    for block, module, x in chain(synth_checkpoint, sample):
        with collect(block, module) as collector:
            block.forward(module, sample, x)
        for seen in collector.statistics().activations.values():
            assert seen.rows == block.rows(len(sample.token_ids), sample.tiles)


def test_hooks_are_gone_afterwards(synth_checkpoint: Checkpoint, sample: CalibrationSample) -> None:
    for block, module, x in chain(synth_checkpoint, sample):
        with collect(block, module) as collector:
            pass
        block.forward(module, sample, x)
        assert all(seen.rows == 0 for seen in collector.statistics().activations.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path, synth_checkpoint: Checkpoint, value: float) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    broken = with_weights(synth_checkpoint, tmp_path / "broken", {name: value})
    block = next(block for block in blocks(broken.spec) if block.name == "language_model.model.layers.1")
    with pytest.raises(CheckpointError) as caught:
        materialize(block, broken, torch.float32, CPU)
    assert caught.value.where == name


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
