"""Images come from one engine, all else from the other."""

from __future__ import annotations

import numpy as np
import pytest

from r1v_export.reference.model import ReferenceEngine
from r1v_export.runner.paired_engine import PairedEngine
from tests.tiny_models import random_model, tiny_spec


def test_each_method_is_that_of_the_engine_that_it_is_taken_from() -> None:
    import torch

    torch.manual_seed(0)
    decoding = ReferenceEngine(random_model(tiny_spec()))
    images = ReferenceEngine(random_model(tiny_spec()))
    with torch.no_grad():
        for weight in images.model.parameters():
            weight.add_(0.1)
    opened = []
    pair = PairedEngine(decoding, lambda: opened.append("images") or images, "two engines")
    sizes, random = decoding.sizes, np.random.default_rng(0)
    pixels = random.standard_normal((2, 3, sizes.tile_size, sizes.tile_size), dtype=np.float32)
    features = images.vision(pixels)
    np.testing.assert_array_equal(pair.vision(pixels), features)
    for found, expected in zip(pair.vision_blocks(pixels), images.vision_blocks(pixels), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pair.projector(features), images.projector(features))
    assert (decoding.vision(pixels) != features).any()
    ids, none = np.array([[3, 4, 5]]), np.zeros((0, sizes.hidden), np.float32)
    embeds = decoding.embed(ids, none)
    np.testing.assert_array_equal(pair.embed(ids, none), embeds)
    assert (images.embed(ids, none) != embeds).any()
    step = embeds, np.arange(3)[None], np.array([0]), np.array([3]), np.array([[2]])
    np.testing.assert_array_equal(pair.decoder(1, 8).step(*step), decoding.decoder(1, 8).step(*step))
    assert pair.cache_limits() == decoding.cache_limits()
    assert pair.sizes is decoding.sizes
    assert pair.name == "two engines"
    assert opened == ["images"]


def test_what_encodes_images_is_not_opened_for_text() -> None:
    decoding = ReferenceEngine(random_model(tiny_spec()))
    pair = PairedEngine(decoding, lambda: pytest.fail("no image is encoded"), "two engines")
    pair.embed(np.array([[3, 4, 5]]), np.zeros((0, decoding.sizes.hidden), np.float32))
    pair.decoder(1, 8)
