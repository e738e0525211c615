"""The name tables: what a model has, in every variant, is what the reference model has."""

from __future__ import annotations

import pytest
import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors, is_unused, stored_names
from r1v_export.checkpoint.presets import PRESETS
from r1v_export.checkpoint.synth import synthesize
from r1v_export.reference.model import Model


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets")
    return {name: Checkpoint.open(synthesize(folder / name, preset=name, weights="empty")).spec for name in PRESETS}


def variants(spec):
    for qkv_bias in (True, False):
        for qk_norm in (True, False):
            for norm in ("rms_norm", "layer_norm"):
                update = {"qkv_bias": qkv_bias, "qk_norm": qk_norm, "norm": norm}
                yield spec.model_copy(update={"vision": spec.vision.model_copy(update=update)})


def test_the_reference_model_has_exactly_these_tensors(specs):
    """The full 38B and an InternViT-300M model on the meta device, and every variant of the small one."""
    for spec in [specs["r1v3-38b"], specs["internvl3-1b"], *variants(specs["nano"])]:
        with torch.device("meta"):
            state = Model(spec).state_dict()
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected_tensors(spec)


def test_the_38b_model_has_the_published_number_of_parameters(specs):
    """model_family.md, section 3: ViT 5.54 B, projector 92 M, LLM 32.76 B (vocabulary 152064)."""
    sizes = {"vision_model": 0, "mlp1": 0, "language_model": 0}
    for name, shape in expected_tensors(specs["r1v1-38b"]).items():
        sizes[name.split(".")[0]] += torch.Size(shape).numel()
    assert round(sizes["vision_model"] / 1e9, 2) == 5.54
    assert round(sizes["mlp1"] / 1e6) == 92
    assert round(sizes["language_model"] / 1e9, 2) == 32.76


def test_no_two_tensors_share_a_stored_name(specs):
    native = specs["r1v3-38b"].model_copy(update={"layout": "internvl"})
    for older in (False, True):
        names = [name for canonical in expected_tensors(native) for name in stored_names(canonical, native, older)]
        assert len(names) == len(set(names)) == len(expected_tensors(native)) + 2 * native.vision.num_layers


def test_a_tied_head_is_stored_as_the_token_embedding(specs):
    spec = specs["nano"]
    tied = spec.model_copy(update={"language": spec.language.model_copy(update={"tie_word_embeddings": True})})
    assert stored_names("language_model.lm_head.weight", tied) == ("language_model.model.embed_tokens.weight",)


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("vision_model.encoder.layers.3.ls1", True),
        ("model.vision_tower.encoder.layer.4.lambda_1", True),
        ("vision_tower.encoder.layer.4.lambda_1", True),
        ("vision_model.encoder.layers.2.ls1", False),
        ("vision_model.encoder.layers.5.ls1", False),
        ("language_model.model.layers.3.mlp.up_proj.weight", False),
        ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("model.vision_tower.embeddings.mask_token", True),
        ("vision_model.head.weight", False),
    ],
)
def test_only_cut_blocks_and_known_buffers_may_go_unused(name, unused):
    assert is_unused(name, range(3, 5)) is unused
