"""Images come from one engine, logits from another, all else from the third."""

from __future__ import annotations

import numpy as np
import pytest

from r1v_export.contract import BeginsDecoder, Decoder
from r1v_export.reference.model import ReferenceEngine
from r1v_export.runner.paired_engine import PairedEngine
from tests.tiny_models import random_model, tiny_spec


def test_each_method_is_that_of_the_engine_that_it_is_taken_from() -> None:
    import torch

    torch.manual_seed(0)
    engine, images, decoding = (ReferenceEngine(random_model(tiny_spec())) for _ in range(3))
    with torch.no_grad():
        for part, change in ((images, 0.1), (decoding, 0.2)):
            for weight in part.model.parameters():
                weight.add_(change)
    opened = []
    pair = PairedEngine(
        engine, "three engines", lambda: opened.append("images") or images, lambda: opened.append("decoder") or decoding
    )
    sizes, random = engine.sizes, np.random.default_rng(0)
    pixels = random.standard_normal((2, 3, sizes.tile_size, sizes.tile_size), dtype=np.float32)
    features = images.vision(pixels)
    np.testing.assert_array_equal(pair.vision(pixels), features)
    for found, expected in zip(pair.vision_blocks(pixels), images.vision_blocks(pixels), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pair.projector(features), images.projector(features))
    assert (engine.vision(pixels) != features).any()
    ids, none = np.array([[3, 4, 5]]), np.zeros((0, sizes.hidden), np.float32)
    embeds = engine.embed(ids, none)
    np.testing.assert_array_equal(pair.embed(ids, none), embeds)
    assert (images.embed(ids, none) != embeds).any()
    step = embeds, np.arange(3)[None], np.array([0]), np.array([3]), np.array([[2]])
    logits = decoding.decoder(1, 8).step(*step)
    np.testing.assert_array_equal(pair.decoder(1, 8).step(*step), logits)
    assert (engine.decoder(1, 8).step(*step) != logits).any()
    assert pair.cache_limits() == decoding.cache_limits()
    assert pair.sizes is engine.sizes
    assert pair.name == "three engines"
    assert opened == ["images", "decoder"]


def test_what_nothing_else_is_there_for_is_the_engines_own() -> None:
    engine = ReferenceEngine(random_model(tiny_spec()))
    pair = PairedEngine(engine, "one engine")
    assert (pair.images, pair.decoding) == (engine, engine)


def test_what_encodes_images_is_not_opened_for_text() -> None:
    engine = ReferenceEngine(random_model(tiny_spec()))
    pair = PairedEngine(engine, "two engines", lambda: pytest.fail("no image is encoded"))
    pair.embed(np.array([[3, 4, 5]]), np.zeros((0, engine.sizes.hidden), np.float32))
    pair.decoder(1, 8)


class Beginning(ReferenceEngine):
    """Says how its decoder was begun."""

    begun: bool | None = None

    def begin_decoder(self, alone: bool) -> None:
        self.begun = alone


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("other_decodes", [False, True])
def test_what_decodes_is_begun_and_nothing_else(other_decodes: bool, alone: bool) -> None:
    engine, other = (Beginning(random_model(tiny_spec())) for _ in range(2))
    opened = []
    open_other = (lambda: opened.append(other) or other) if other_decodes else None
    pair = PairedEngine(engine, "two engines", open_decoder=open_other)
    assert isinstance(pair, BeginsDecoder)
    pair.begin_decoder(alone)
    if other_decodes:
        assert (engine.begun, other.begun, opened) == ((None, None, []) if alone else (None, False, [other]))
    else:
        assert (engine.begun, other.begun) == (alone, None)


def test_an_engine_that_cannot_begin_is_left_alone() -> None:
    engine = ReferenceEngine(random_model(tiny_spec()))
    assert not isinstance(engine, BeginsDecoder)
    PairedEngine(engine, "one engine").begin_decoder(alone=True)


class OfOneSequence(ReferenceEngine):
    """Has another decoder for one sequence."""

    opened = 0

    def one_sequence_decoder(self, capacity: int) -> Decoder:
        self.opened += 1
        return self.decoder(1, capacity)


@pytest.mark.parametrize("cls", [ReferenceEngine, OfOneSequence])
def test_one_sequence_is_decoded_by_what_the_engine_that_decodes_has_for_it(cls: type[ReferenceEngine]) -> None:
    engine, other = OfOneSequence(random_model(tiny_spec())), cls(random_model(tiny_spec()))
    pair = PairedEngine(engine, "two engines", open_decoder=lambda: other)
    decoder = pair.one_sequence_decoder(8)
    assert (decoder.batch, decoder.capacity) == (1, 8)
    assert (engine.opened, getattr(other, "opened", None)) == (0, 1 if cls is OfOneSequence else None)
