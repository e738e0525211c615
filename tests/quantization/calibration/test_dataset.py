"""Calibration samples: what the model will see, in a fixed order; and every way in which a set can be bad."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.tokenizer import Tokenizer
from r1v_export.errors import CapabilityError, InputError, UsageError
from r1v_export.quantization.calibration.dataset import CalibrationSet, Shard, prepare
from r1v_export.quantization.calibration.raw_examples import RawExample, read_examples
from r1v_export.reference.preprocess import pixel_values
from r1v_export.reference.prompt import TEMPLATES, Turn, encode


def write_set(folder: Path, *examples: dict[str, Any] | str) -> Path:
    """A folder with red.png, blue.png (which needs two tiles) and a JSONL file of the given lines."""
    Image.new("RGB", (112, 112), "red").save(folder / "red.png")
    Image.new("RGB", (224, 112), "blue").save(folder / "blue.png")
    lines = [example if isinstance(example, str) else json.dumps(example) for example in examples]
    (folder / "set.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def prepared(folder: Path, checkpoint: Checkpoint, **options: Any) -> CalibrationSet:
    return prepare(read_examples(folder, 100), checkpoint, **options)


RED = {"image": "red.png", "prompt": "Which colour?", "answer": "red"}


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


def test_a_long_reply_is_cut_but_not_a_long_prompt(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    folder = write_set(tmp_path, {**RED, "answer": "red " * 500})
    (sample,) = prepared(folder, synth_checkpoint, max_tokens=100).samples
    assert len(sample.token_ids) == 100
    with pytest.raises(InputError, match=r"longer than the model's context(.|\n)*set\.jsonl, line 1"):
        prepared(folder, synth_checkpoint, max_tokens=20)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        ('{"image": "red.png"}', "missing field prompt"),
        ('{"image": "red.png", "prompt": " "}', "prompt: is empty"),
        ('{"image": "red.png", "prompt": 7}', "wrong value of prompt"),
        ('{"image": "red.png", "prompt": "?", "answer": ""}', "answer: is empty"),
        ('{"image": "red.png", "prompt": "?", "reasoning": "t"}', "needs the answer"),
        ('{"image": "red.png", "prompt": "?", "awnser": "red"}', "unknown field awnser"),
    ],
)
def test_a_record_that_is_not_as_it_should_be_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_examples(write_set(tmp_path, RED, line), 10)
    assert message in str(caught.value)
    assert "set.jsonl, line 2" in str(caught.value)


def test_records_beyond_the_wanted_number_are_not_read(tmp_path: Path) -> None:
    assert len(read_examples(write_set(tmp_path, RED, "", RED, "broken"), 2)) == 2


def make_truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def make_huge(path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(path)


BAD_PICTURES = {
    "missing": (lambda path: None, "cannot be read"),
    "text": (lambda path: path.write_text("hello"), "not an image"),
    "truncated": (make_truncated, "damaged or cut off"),
    "of 100 megapixels": (make_huge, "too large"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_image_is_named_with_its_line(tmp_path: Path, synth_checkpoint: Checkpoint, kind: str) -> None:
    make, message = BAD_PICTURES[kind]
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


@pytest.mark.parametrize("files", [(), ("a.jsonl", "b.jsonl")])
def test_a_folder_without_one_jsonl_file_is_refused(tmp_path: Path, files: Sequence[str]) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="no calibration set here"):
        read_examples(tmp_path, 1)
    with pytest.raises(InputError, match="no calibration set here"):
        read_examples(tmp_path / "nowhere", 1)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_examples(tmp_path, 1)


def test_more_shards_than_samples_are_refused(tmp_path: Path, synth_checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="more shards"):
        prepared(write_set(tmp_path, RED), synth_checkpoint, shard=Shard(0, 2))


def test_shards_are_counted_from_one() -> None:
    assert Shard.parse("2/8") == Shard(1, 8)
    assert str(Shard.parse("2/8")) == "2/8"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2", ""])
def test_a_shard_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="shard"):
        Shard.parse(text)


def test_a_saved_dataset_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match="datasets"):
        read_examples(tmp_path, 1)


class TestSavedDatasets:
    """Folders written by the real `datasets` package."""

    @pytest.fixture
    def datasets(self) -> Any:
        return importlib.import_module("datasets")  # Takes seconds: for these tests alone.

    def saved(self, datasets: Any, folder: Path, **columns: Any) -> Path:
        datasets.Dataset.from_dict(columns).save_to_disk(folder)
        return folder

    def test_images_questions_and_answers_are_read(
        self, datasets: Any, tmp_path: Path, synth_checkpoint: Checkpoint
    ) -> None:
        red = Image.new("RGB", (112, 112), "red")
        rows = datasets.Dataset.from_dict(
            {"image": [red, None], "question": ["Which?", "Hello?"], "answer": ["red", None], "id": [1, 2]},
            features=datasets.Features(
                image=datasets.Image(),
                question=datasets.Value("string"),
                answer=datasets.Value("string"),
                id=datasets.Value("int64"),
            ),
        )
        rows.save_to_disk(tmp_path / "rows")
        examples = read_examples(tmp_path / "rows", 10)
        assert [(r.prompt, r.answer, len(r.images)) for r in examples] == [("Which?", "red", 1), ("Hello?", None, 0)]
        assert examples[0].load_images()[0].getpixel((3, 3)) == (255, 0, 0)
        from_jsonl = prepared(write_set(tmp_path, {**RED, "prompt": "Which?"}), synth_checkpoint)
        assert prepare(examples, synth_checkpoint).samples[0].sha256 == from_jsonl.samples[0].sha256

    def test_a_truncated_image_is_named_with_its_row(self, datasets: Any, tmp_path: Path) -> None:
        make_truncated(tmp_path / "bad.png")
        image = {"bytes": (tmp_path / "bad.png").read_bytes(), "path": None}
        rows = datasets.Dataset.from_dict({"image": [image], "prompt": ["?"]})
        rows.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "rows")
        (example,) = read_examples(tmp_path / "rows", 10)
        with pytest.raises(InputError, match=r"damaged(.|\n)*row 0, image 1"):
            example.load_images()

    def test_several_splits_are_told(self, datasets: Any, tmp_path: Path) -> None:
        datasets.DatasetDict(train=datasets.Dataset.from_dict({"prompt": ["?"]})).save_to_disk(tmp_path / "rows")
        with pytest.raises(InputError, match=r"several splits(.|\n)*rows/train"):
            read_examples(tmp_path / "rows", 1)

    def test_rows_without_a_prompt_are_named(self, datasets: Any, tmp_path: Path) -> None:
        folder = self.saved(datasets, tmp_path / "rows", text=["?"])
        with pytest.raises(InputError, match=r"row 0(.|\n)*prompt"):
            read_examples(folder, 1)

    def test_a_damaged_folder_is_refused(self, datasets: Any, tmp_path: Path) -> None:
        folder = self.saved(datasets, tmp_path / "rows", prompt=["?"])
        (folder / "dataset_info.json").write_text("{")
        with pytest.raises(InputError, match="cannot be read"):
            read_examples(folder, 1)
