"""InternViT, pixel shuffle and projector, against transformers' InternVL and the published formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from r1v_export.model_spec import ModelSpec
from r1v_export.reference.model import Model
from r1v_export.reference.vision import pixel_shuffle, resize_position_embedding

INTERNVIT_6B = {"norm": "rms_norm", "qk_norm": True, "qkv_bias": False, "norm_eps": 1e-6}
INTERNVIT_300M = {"norm": "layer_norm", "qk_norm": False, "qkv_bias": True, "norm_eps": 1e-5}


@pytest.fixture(params=[INTERNVIT_6B, INTERNVIT_300M], ids=["InternViT-6B", "InternViT-300M"])
def spec(request, make_spec) -> ModelSpec:
    return make_spec(**request.param)


@pytest.fixture
def model(spec, randomize) -> Model:
    return randomize(Model(spec))


@torch.no_grad()
def test_image_embeddings_equal_those_of_transformers(model, transformers_twin):
    pixels = torch.randn(3, 3, 16, 16)
    oracle = transformers_twin(model)
    torch.testing.assert_close(
        model.image_embeds(pixels),
        oracle.get_image_features(pixel_values=pixels).pooler_output,
        atol=1e-5,
        rtol=1e-5,
    )


@torch.no_grad()
def test_every_block_equals_that_of_transformers(model, transformers_twin):
    pixels = torch.randn(2, 3, 16, 16)
    oracle = transformers_twin(model).model.vision_tower
    expected = oracle(pixels, output_hidden_states=True).hidden_states
    hidden = model.vision_model.embeddings(pixels)
    torch.testing.assert_close(hidden, expected[0])
    for block, after in zip(model.vision_model.encoder.layers, expected[1:], strict=True):
        hidden = block(hidden)
        torch.testing.assert_close(hidden, after, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tiles_do_not_see_each_other(model):
    pixels = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(model.vision_model(pixels)[1:2], model.vision_model(pixels[1:2]))


@torch.no_grad()
def test_a_larger_tile_than_the_position_embeddings_is_interpolated_as_in_transformers(
    make_spec, randomize, transformers_twin
):
    spec = make_spec(tile_size=24, image_size=16)
    model = randomize(Model(spec))
    pixels = torch.randn(2, 3, 24, 24)
    expected = transformers_twin(model).model.vision_tower(pixels).last_hidden_state
    torch.testing.assert_close(
        model.vision_model(pixels), model.vision_model.to_features(expected), atol=1e-5, rtol=1e-5
    )
    assert model.vision_model(pixels).shape == (2, spec.tokens_per_tile, 128)


def test_a_position_embedding_of_the_right_size_is_left_alone():
    embedding = torch.randn(1, 17, 6)
    assert resize_position_embedding(embedding, 4) is embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_position_embedding_is_resized_as_published(dtype):
    """`_get_pos_embed` of modeling_intern_vit.py: bicubic in float32, back to the weights' type, class token kept."""
    embedding = torch.randn(1, 1 + 8 * 8, 6).to(dtype)
    grid = embedding[:, 1:].float().reshape(1, 8, 8, 6).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(5, 5), mode="bicubic", align_corners=False)
    expected = resized.reshape(1, 6, 25).permute(0, 2, 1).to(dtype)
    ours = resize_position_embedding(embedding, 5)
    assert ours.dtype == dtype
    assert torch.equal(ours[:, :1], embedding[:, :1])
    assert torch.equal(ours[:, 1:], expected)


def published_pixel_shuffle(x: Tensor, version: str, scale: float) -> Tensor:
    """`pixel_shuffle` of modeling_internvl_chat.py."""
    n, w, h, c = x.size()
    x = x.view(n, w, int(h * scale), int(c / scale)).permute(0, 2, 1, 3).contiguous()
    x = x.view(n, int(h * scale), int(w * scale), int(c / (scale * scale)))
    return x if version == "v1" else x.permute(0, 2, 1, 3).contiguous()


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("shuffle", [1, 2, 4])
def test_pixel_shuffle_is_the_published_one(version, shuffle):
    grid = torch.randn(2, 8, 8, 5)
    expected = published_pixel_shuffle(grid, version, 1 / shuffle)
    assert torch.equal(pixel_shuffle(grid, shuffle, version), expected)


def test_pixel_shuffle_joins_squares_row_by_row():
    """Model family, section 4: out[i,j] = concat(x[2i,2j], x[2i,2j+1], x[2i+1,2j], x[2i+1,2j+1])."""
    grid = torch.arange(16).reshape(1, 4, 4, 1)
    assert pixel_shuffle(grid, 2, "v2")[0, 0, 1].tolist() == [2, 3, 6, 7]
    assert pixel_shuffle(grid, 2, "v2")[0, 1, 0].tolist() == [8, 9, 12, 13]
    assert pixel_shuffle(grid, 2, "v1")[0, 1, 0].tolist() == [2, 3, 6, 7]


@torch.no_grad()
def test_ps_version_v1_transposes_the_tokens_of_a_tile(make_spec, randomize):
    v1, v2 = (randomize(Model(make_spec(ps_version=version))) for version in ("v1", "v2"))
    pixels = torch.randn(1, 3, 16, 16)
    tokens_v1, tokens_v2 = v1.image_embeds(pixels), v2.image_embeds(pixels)
    assert not torch.allclose(tokens_v1, tokens_v2)
    torch.testing.assert_close(tokens_v1.view(2, 2, -1).transpose(0, 1), tokens_v2.view(2, 2, -1))
