"""Samples are found again by split and index, and no split holds another's."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import FrozenInstanceError

import pytest

from r1v_export.nano.dataset import sample, samples
from r1v_export.nano.questions import KINDS
from r1v_export.nano.scenes import MANY_TILE_SIZES

FIRST_100_HELD_OUT = "80f76aa37ea13e9ab7b86c2984c82020dab36e4b154fd2876cf46518b497b7c8"
"""SHA-256 of their texts. The published accuracy holds for these: a change here calls for a new evaluation."""


def test_a_sample_is_the_same_each_time_and_however_it_is_reached():
    for index, of_stream in enumerate(samples("eval", 12)):
        alone = sample("eval", index)
        assert alone.image.tobytes() == of_stream.image.tobytes()
        assert (alone.question, alone.reasoning, alone.answer, alone.kind) == (
            of_stream.question,
            of_stream.reasoning,
            of_stream.answer,
            of_stream.kind,
        )


def test_the_held_out_questions_stay_what_they_were():
    texts = [f"{s.image.size} {s.question} {s.reasoning} {s.answer}\n" for s in samples("eval", 100)]
    assert hashlib.sha256("".join(texts).encode()).hexdigest() == FIRST_100_HELD_OUT


def test_splits_share_no_image():
    images = {
        split: {hashlib.sha256(s.image.tobytes()).digest() for s in samples(split, 300)}
        for split in ("train", "eval", "calibration")
    }
    assert all(len(digests) == 300 for digests in images.values())
    assert len(set.union(*images.values())) == 900


def test_kinds_take_turns():
    assert Counter(s.kind for s in samples("calibration", 60)) == dict.fromkeys(KINDS, 10)


def test_a_real_share_of_the_images_needs_several_tiles():
    many = sum(s.image.size in MANY_TILE_SIZES for s in samples("eval", 300))
    assert 90 <= many <= 150


def test_a_sample_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        sample("eval", 0).answer = "42"


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'test'"):
        sample("test", 0)
