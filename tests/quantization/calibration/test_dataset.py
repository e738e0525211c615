"""Calibration samples: what the model is given, in a fixed order; and every way in which a set can be invalid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import InputError, UsageError
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.prompt import TEMPLATES, Turn, encode
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.quantization.calibration.dataset import Shard, prepare
from r1v_export.quantization.calibration.raw_examples import RawExample, read_examples
from tests.quantization.calibration_cases import RED, make_truncated, prepared, write_set


def test_a_sample_is_prompt_images_reply_and_stop_token(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    asked = {"images": ["blue.png", "red.png"], "prompt": "Same?", "reasoning": "Blue, red.", "answer": "no"}
    (sample,) = prepared(write_set(tmp_path, asked), synth_checkpoint).samples
    spec, tokenizer = synth_checkpoint.spec, Tokenizer.from_folder(synth_checkpoint.folder)
    turns = [Turn("user", "Same?", images=2)]
    prompt = encode(tokenizer, TEMPLATES[spec.template], turns, [3, 1], spec.tokens_per_tile)
    reply = tokenizer.encode_text("Blue, red.\n</think>\n\nno")
    assert list(sample.token_ids) == prompt + reply + [tokenizer.special_id("<|im_end|>")]
    assert sample.tiles == 4
    images = [Image.open(tmp_path / name) for name in ("blue.png", "red.png")]
    assert np.array_equal(sample.pixels(), pixel_values(images, spec.tiling)[0])


def test_without_a_reasoning_none_is_opened(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    (sample,) = prepared(write_set(tmp_path, RED), synth_checkpoint).samples
    text = Tokenizer.from_folder(synth_checkpoint.folder).decode(sample.token_ids)
    assert text.endswith("assistant\nred")


def test_the_end_of_a_reasoning_is_one_token_where_the_tokenizer_has_it(
    tmp_path: Path, synth_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "Red.\n</think>\n\nred"
    folder = write_set(tmp_path, {**RED, "answer": answer})
    special = Tokenizer.from_folder(synth_checkpoint.folder).special_id("<|endoftext|>")
    real = Tokenizer.token_id
    monkeypatch.setattr(Tokenizer, "token_id", lambda self, t: special if t == "</think>" else real(self, t))
    (sample,) = prepared(folder, synth_checkpoint).samples
    assert sample.token_ids.count(special) == 1


def test_where_there_is_no_answer_the_model_continues(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    folder = write_set(tmp_path, {"image": "red.png", "prompt": "What?"}, RED, {"prompt": "Why?"})
    asked: list[str] = []

    def generate_responses(examples: Sequence[RawExample]) -> list[list[int]]:
        asked.extend(example.prompt for example in examples)
        return [[7, 8, 9] for _ in examples]

    alone = prepared(folder, synth_checkpoint).samples
    continued = prepared(folder, synth_checkpoint, generate_responses=generate_responses).samples
    assert asked == ["What?", "Why?"]
    assert [c.token_ids[len(a.token_ids) :] for a, c in zip(alone, continued, strict=True)] == [
        (7, 8, 9),
        (),
        (7, 8, 9),
    ]


def test_order_and_hashes_are_the_same_every_time_and_tell_samples_apart(
    tmp_path: Path, synth_checkpoint: Checkpoint
) -> None:
    folder = write_set(tmp_path, RED, {**RED, "image": "blue.png"}, {**RED, "answer": "blue"}, RED)
    first, second = (prepared(folder, synth_checkpoint).samples for _ in range(2))
    hashes = [sample.sha256 for sample in first]
    assert hashes == [sample.sha256 for sample in second]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]


def test_one_changed_pixel_changes_the_hash(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    folder = write_set(tmp_path, RED)
    before = prepared(folder, synth_checkpoint).samples[0].sha256
    image = Image.open(folder / "red.png")
    image.putpixel((5, 5), (254, 0, 0))
    image.save(folder / "red.png")
    assert prepared(folder, synth_checkpoint).samples[0].sha256 != before


def test_shards_share_the_set_out_without_a_sample_left_or_doubled(
    tmp_path: Path, synth_checkpoint: Checkpoint
) -> None:
    folder = write_set(tmp_path, *({**RED, "answer": str(n)} for n in range(7)))
    whole = prepared(folder, synth_checkpoint)
    shards = [prepared(folder, synth_checkpoint, shard=Shard(index, 3)) for index in range(3)]
    found = sorted((s.index, s.sha256) for shard in shards for s in shard.samples)
    assert found == [(s.index, s.sha256) for s in whole.samples]
    assert {shard.total for shard in shards} == {7}


def test_the_built_in_set_is_questions_with_reasoning(synth_checkpoint: Checkpoint) -> None:
    examples = read_examples(None, 6)
    assert [example.name for example in examples] == [f"built-in {n}" for n in range(6)]
    samples = prepare(examples, synth_checkpoint).samples
    text = Tokenizer.from_folder(synth_checkpoint.folder).decode(samples[0].token_ids)
    assert f"{examples[0].reasoning}\n</think>\n\n{examples[0].answer}" in text


def test_a_long_response_is_cut_but_not_a_long_prompt(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    folder = write_set(tmp_path, {**RED, "answer": "red " * 500})
    (sample,) = prepared(folder, synth_checkpoint, max_tokens=100).samples
    assert len(sample.token_ids) == 100
    with pytest.raises(InputError, match=r"longer than the model's context(.|\n)*set\.jsonl, line 1"):
        prepared(folder, synth_checkpoint, max_tokens=20)


def make_huge(path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(path)


BAD_IMAGES = {
    "missing": (lambda path: None, "cannot be read"),
    "text": (lambda path: path.write_text("hello"), "not an image"),
    "truncated": (make_truncated, "damaged or cut off"),
    "of 100 megapixels": (make_huge, "too large"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_named_with_its_line(tmp_path: Path, synth_checkpoint: Checkpoint, kind: str) -> None:
    make, message = BAD_IMAGES[kind]
    make(tmp_path / "bad.png")
    with pytest.raises(InputError, match=message) as caught:
        prepared(write_set(tmp_path, RED, {**RED, "image": "bad.png"}), synth_checkpoint)
    assert "set.jsonl, line 2: bad.png" in str(caught.value)


def test_a_set_without_any_image_is_refused(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="No sample of the calibration set shows an image"):
        prepared(write_set(tmp_path, {"prompt": "Hello?", "answer": "Hi"}), synth_checkpoint)


def test_texts_among_images_are_welcome(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    text = prepared(write_set(tmp_path, RED, {"prompt": "Hello?", "answer": "Hi"}), synth_checkpoint).samples[1]
    assert text.tiles == 0
    assert text.pixels().shape == (0, 3, 112, 112)


def test_placeholders_that_do_not_match_the_images_are_named_with_their_line(
    tmp_path: Path, synth_checkpoint: Checkpoint
) -> None:
    with pytest.raises(InputError, match=r"placeholders(.|\n)*set\.jsonl, line 1"):
        prepared(write_set(tmp_path, {**RED, "prompt": "<image> and <image>"}), synth_checkpoint)


def test_an_empty_set_is_refused(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="empty"):
        prepared(write_set(tmp_path, ""), synth_checkpoint)


def test_more_shards_than_samples_are_refused(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="more shards") as caught:
        prepared(write_set(tmp_path, RED), synth_checkpoint, shard=Shard(0, 2))
    assert caught.value.fix == "pass fewer shards, or more samples: with --samples, or in the set that --calib names"


def test_shards_are_counted_from_one() -> None:
    assert Shard.parse("2/8") == Shard(1, 8)
    assert str(Shard.parse("2/8")) == "2/8"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2", ""])
def test_a_shard_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="shard"):
        Shard.parse(text)
