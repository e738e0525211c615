"""Image embeddings in their places."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from r1v_export.reference.embed import Embed

IMAGE = 3


@pytest.fixture
def embed() -> Embed:
    return Embed(nn.Embedding(10, 4), IMAGE).requires_grad_(False)


def test_text_takes_the_rows_of_the_table(embed):
    ids = torch.tensor([[0, 1, 9], [5, 5, 2]])
    assert torch.equal(embed(ids, torch.empty(0, 4)), embed.embed_tokens.weight[ids])


def test_image_tokens_take_the_image_embeddings_in_order_row_by_row(embed):
    ids = torch.tensor([[1, IMAGE, IMAGE, 2, IMAGE], [IMAGE, 4, 5, IMAGE, 6]])
    images = torch.arange(5.0)[:, None] + 100 + torch.zeros(4)
    expected = embed.embed_tokens.weight[ids].clone()
    expected[0, [1, 2, 4]] = images[:3]
    expected[1, [0, 3]] = images[3:]
    assert torch.equal(embed(ids, images), expected)


def test_a_row_without_images_leaves_the_others_in_order(embed):
    ids = torch.tensor([[IMAGE, 1], [2, 4], [5, IMAGE]])
    images = torch.tensor([[1.0] * 4, [2.0] * 4])
    out = embed(ids, images)
    assert (out[0, 0].tolist(), out[2, 1].tolist()) == ([1.0] * 4, [2.0] * 4)
    assert torch.equal(out[1], embed.embed_tokens.weight[ids[1]])


def test_an_image_token_without_an_image_takes_its_own_row(embed):
    """As in the published code, which replaces embeddings of the prompt only: a model may write an image token."""
    ids = torch.tensor([[1, IMAGE, IMAGE, 2, IMAGE]])
    images = torch.tensor([[1.0] * 4, [2.0] * 4])
    own = embed.embed_tokens.weight[ids]
    assert torch.equal(embed(ids, torch.empty(0, 4)), own)
    out = embed(ids, images)
    assert torch.equal(out[0, 1:3], images)
    assert torch.equal(out[0, [0, 3, 4]], own[0, [0, 3, 4]])


def test_a_prompt_may_be_all_image(embed):
    images = torch.randn(4, 4)
    assert torch.equal(embed(torch.full((1, 4), IMAGE), images)[0], images)
