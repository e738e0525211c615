"""The chain of blocks is the reference model, taken apart."""

from __future__ import annotations

import pytest
import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.errors import CheckpointError
from r1v_export.quantization.calibration.blocks import blocks, materialize, require_finite_weights
from r1v_export.quantization.calibration.dataset import CalibrationSample
from r1v_export.quantization.groups import linear_groups
from r1v_export.reference.model import Model
from tests.quantization.calibration_cases import chain, collect, logits, small_set, with_weights

CPU = torch.device("cpu")


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


def test_a_sample_without_images_passes_through_the_vision_tower(synth_checkpoint: Checkpoint) -> None:
    sample = small_set(synth_checkpoint, 1).samples[0]
    image = synth_checkpoint.spec.image_token_id
    tokens = tuple(id_ for id_ in sample.token_ids if id_ != image)
    side = synth_checkpoint.spec.tiling.tile_size
    text = CalibrationSample(0, "text", "", tokens, len(tokens), 0, lambda: torch.zeros(0, 3, side, side).numpy())
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path, synth_checkpoint: Checkpoint, value: float) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    broken = with_weights(synth_checkpoint, tmp_path / "broken", {name: value})
    block = next(block for block in blocks(broken.spec) if block.name == "language_model.model.layers.1")
    module = materialize(block, broken, torch.float32, CPU)
    with pytest.raises(CheckpointError) as caught:
        require_finite_weights(block, module)
    assert caught.value.where == name
