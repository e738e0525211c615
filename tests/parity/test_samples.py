from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from r1v_export.errors import InputError
from r1v_export.nano import dataset
from r1v_export.parity.samples import ParitySample, from_files, held_out, synthetic, with_a_prompt_of
from r1v_export.processing.tiling import tile_count
from tests.tiny_models import tiny_spec


def test_held_out_questions_are_the_generators_and_have_answers():
    ours, theirs = list(held_out(5)), list(dataset.samples("eval", 5))
    assert [(s.question, s.answer) for s in ours] == [(s.question, s.answer) for s in theirs]
    assert len({s.name for s in ours}) == 5


def test_synthetic_images_are_the_same_every_time():
    first, second = (list(synthetic(6, 56)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.question == b.question
        assert all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))


def test_synthetic_images_differ_in_shape_and_number():
    samples = list(synthetic(5, 112))
    assert len({image.size for sample in samples for image in sample.images}) >= 4
    assert {len(sample.images) for sample in samples} == {1, 2}


def test_files_are_asked_every_question(tmp_path: Path):
    for name in ("a.png", "b.png"):
        next(synthetic(1, 32)).images[0].save(tmp_path / name)
    samples = list(from_files([tmp_path / "a.png", tmp_path / "b.png"], ["What?", "Where?"]))
    assert [sample.question for sample in samples] == ["What?", "Where?"] * 2
    assert len({sample.name for sample in samples}) == 4


def test_a_file_that_is_no_image_is_named(tmp_path: Path):
    (tmp_path / "no.png").write_text("text")
    with pytest.raises(InputError, match=r"no\.png"):
        list(from_files([tmp_path / "no.png"], ["What?"]))


def test_a_longer_prompt_is_about_the_images_of_several_samples():
    known, spec = list(synthetic(5, 32)), tiny_spec()
    tokens = [spec.tokens_per_tile * tile_count(*image.size, spec.tiling) for each in known for image in each.images]
    least = sum(tokens[:3]) - 1
    *others, long = with_a_prompt_of(least, iter(known), spec)
    assert others == known
    assert (long.name, long.question, long.answer) == ("3 images", known[0].question, None)
    assert long.images == tuple(image for each in known for image in each.images)[:3]
    *_, again = with_a_prompt_of(sum(tokens) + 1, known, spec)
    assert again.images[len(tokens)] is again.images[0]


def test_prompts_of_large_tiles_are_long_enough():
    known, spec = list(synthetic(2, 32)), tiny_spec()
    assert with_a_prompt_of(spec.tokens_per_tile, known, spec) is known


def test_questions_without_images_stay_as_they_are():
    known = [ParitySample("text", (), "What is two and two?")]
    assert list(with_a_prompt_of(128, known, tiny_spec())) == known
