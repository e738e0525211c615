"""Calibration examples from JSONL files and saved datasets, and every way in which they can be invalid."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import CapabilityError, InputError
from r1v_export.quantization.calibration.dataset import prepare
from r1v_export.quantization.calibration.raw_examples import read_examples
from tests.quantization.calibration_cases import RED, make_truncated, prepared, write_set


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
def test_an_invalid_record_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_examples(write_set(tmp_path, RED, line), 10)
    assert message in str(caught.value)
    assert "set.jsonl, line 2" in str(caught.value)


def test_examples_beyond_the_wanted_number_are_not_read(tmp_path: Path) -> None:
    assert len(read_examples(write_set(tmp_path, RED, "", RED, "broken"), 2)) == 2


@pytest.mark.parametrize("files", [(), ("a.jsonl", "b.jsonl")])
def test_a_folder_without_one_jsonl_file_is_refused(tmp_path: Path, files: Sequence[str]) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="no calibration set here"):
        read_examples(tmp_path, 1)
    with pytest.raises(InputError, match="no calibration set here"):
        read_examples(tmp_path / "nowhere", 1)


@pytest.mark.parametrize(("text", "found"), [("", "an empty file"), ("\n\n", "2 empty lines")])
def test_an_empty_set_is_named_with_what_to_write(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match="calibration set is empty") as caught:
        read_examples(path, 1)
    assert (caught.value.where, caught.value.found) == (path, found)
    assert "JSON object per line" in str(caught.value.fix)


def test_a_line_that_is_no_json_is_answered_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not JSON") as caught:
        read_examples(write_set(tmp_path, "model: r1v-nano"), 1)
    assert "JSON object per line" in str(caught.value.fix)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_examples(tmp_path, 1)


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

    def test_several_splits_are_reported(self, datasets: Any, tmp_path: Path) -> None:
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
