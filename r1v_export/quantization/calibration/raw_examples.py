"""Read calibration examples, images and texts, from the generator, a `.jsonl` file or a saved dataset."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field, field_validator, model_validator

from r1v_export.config import ImagePolicy
from r1v_export.count import Count
from r1v_export.errors import CapabilityError, InputError
from r1v_export.files import open_regular
from r1v_export.nano import dataset
from r1v_export.processing.load_image import ImageSource, load_image
from r1v_export.strict import StrictModel, parse_fields, parse_json

_SAVED_DATASET_FILES = ("state.json", "dataset_dict.json")
"""What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in a folder."""

_INVALID = "Invalid calibration record"
_CORRECT = "correct --calib, or omit it to calibrate on generated images"
_WRITE = 'write one JSON object per line, such as {"image": "a.png", "prompt": "What is this?"}'


@dataclass(frozen=True)
class RawExample:
    """One question about any number of images.

    Attributes:
        name: where it comes from, without a path.
        images: makes each image when called.
        prompt: what the user asks.
        reasoning: the model's reasoning, where it is known.
        answer: the model's answer; None where it is for the model to say.
    """

    name: str
    images: tuple[Callable[[], Image.Image], ...]
    prompt: str
    reasoning: str | None = None
    answer: str | None = None

    def load_images(self) -> list[Image.Image]:
        """Load the example's images."""
        return [load() for load in self.images]


def read_examples(source: str | Path | None, count: int, policy: ImagePolicy = "as_displayed") -> list[RawExample]:
    """The first `count` examples of a calibration set, in order; all of them if it has fewer.

    Args:
        source: None for the built-in generator, else a `.jsonl` file or a folder, see `calibration.dataset`.
        policy: how image files become RGB; generated images are RGB already.

    Raises:
        InputError: there is no such set, or an example in it is invalid. Images are not read yet.
        CapabilityError: a `datasets` folder, and that package is not installed.
    """
    if source is None:
        return builtin_examples(count)
    path = Path(source)
    if path.is_dir() and any((path / name).exists() for name in _SAVED_DATASET_FILES):
        return dataset_examples(path, count, policy)
    return jsonl_examples(_find_jsonl(path), count, policy)


def builtin_examples(count: int) -> list[RawExample]:
    """Generated images, questions, reasoning and answers: the calibration split, disjoint from training and test."""

    def image(index: int) -> Image.Image:
        return dataset.sample("calibration", index).image

    return [
        RawExample(f"built-in {index}", (partial(image, index),), sample.question, sample.reasoning, sample.answer)
        for index, sample in enumerate(dataset.samples("calibration", count))
    ]


def _find_jsonl(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    raise InputError(
        "There is no calibration set here.",
        where=path,
        expected="a .jsonl file, a folder that holds one, or a folder saved with Hugging Face datasets",
        found=", ".join(file.name for file in found) if found else "none of these" if path.is_dir() else "no such path",
        fix="name one of these files" if found else _CORRECT,
    )


class _Fields(StrictModel, strict=True):
    """The fields of one example."""

    image: str | None = None
    images: list[str] = Field(default_factory=list)
    prompt: str
    reasoning: str | None = None
    answer: str | None = None

    @property
    def files(self) -> list[str]:
        """Paths of the example's images, in order."""
        return ([] if self.image is None else [self.image]) + self.images

    @field_validator("prompt", "answer")
    @classmethod
    def _says_something(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("is empty")
        return text

    @model_validator(mode="after")
    def _reasoning_leads_to_an_answer(self) -> _Fields:
        if self.reasoning is not None and self.answer is None:
            raise ValueError("reasoning needs the answer that it leads to")
        return self


def jsonl_examples(path: Path, count: int, policy: ImagePolicy = "as_displayed") -> list[RawExample]:
    """Read examples from a `.jsonl` file, one per line; empty lines are skipped.

    Raises:
        InputError: the file cannot be read, or a line is invalid.
    """
    examples: list[RawExample] = []
    lines = 0
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            for lines, line in enumerate(file, start=1):
                if len(examples) == count:
                    break
                if line.strip():
                    examples.append(_jsonl_example(path, lines, line, policy))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("The calibration set cannot be read.", where=path, found=error, fix=_CORRECT) from error
    if not examples:
        raise InputError(
            "The calibration set is empty.",
            where=path,
            expected="at least one line with an example",
            found=str(Count(lines, "empty line")) if lines else "an empty file",
            fix=_WRITE,
        )
    return examples


def named_files(source: Path) -> set[str]:
    """The image files that a set's `.jsonl` names, as they are written there; lines that are no example name none.

    Args:
        source: a `.jsonl` file, or a folder.
    """
    names: set[str] = set()
    for path in [source] if source.is_file() else source.glob("*.jsonl"):
        with io.TextIOWrapper(open_regular(path), encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    names.update(parse_json(_Fields, line, InputError, _INVALID, where=path).files)
                except InputError:
                    continue  # Refused if it is among the samples that are read.
    return names


def _jsonl_example(path: Path, number: int, line: str, policy: ImagePolicy) -> RawExample:
    where = f"{path}, line {number}"
    fields = parse_json(_Fields, line, InputError, _INVALID, where=where, otherwise=_WRITE)
    images = tuple(partial(_load, path.parent / file, policy, f"{where}: {file}") for file in fields.files)
    return RawExample(f"{path.name}, line {number}", images, fields.prompt, fields.reasoning, fields.answer)


def _load(source: ImageSource, policy: ImagePolicy, where: str) -> Image.Image:
    """Load an image; errors name its example."""
    try:
        return load_image(source, policy)
    except InputError as error:
        raise InputError(error.what, where=where, expected=error.expected, found=error.found, fix=error.fix) from error


def dataset_examples(folder: Path, count: int, policy: ImagePolicy = "as_displayed") -> list[RawExample]:
    """Examples of a folder that was saved with Hugging Face `datasets`; further columns are ignored."""
    rows = _open_dataset(folder)
    return [_dataset_example(rows, folder, index, policy) for index in range(min(count, len(rows)))]


def _open_dataset(folder: Path) -> Any:
    """The dataset, its images left encoded: they are decoded by `load_image`, under its limits."""
    if importlib.util.find_spec("datasets") is None:
        raise CapabilityError(
            "The calibration set needs a package that is not installed.",
            where=folder,
            expected="Hugging Face datasets",
            fix="pip install 'datasets>=3', or write the samples as a .jsonl file",
        )
    import datasets

    try:
        rows = datasets.load_from_disk(str(folder))
    except Exception as error:  # Arrow and the file system raise a dozen kinds of exception.
        fix = "write it again with save_to_disk, or pass a folder of images, or a .jsonl file"
        raise InputError("The calibration set cannot be read.", where=folder, found=error, fix=fix) from error
    if isinstance(rows, datasets.DatasetDict):
        raise InputError(
            "The folder holds several splits.",
            where=folder,
            expected="one split",
            found=", ".join(rows),
            fix=f"name one of them: {folder / next(iter(rows), 'train')}",
        )
    for column, decoded in (("image", datasets.Image()), ("images", datasets.Sequence(datasets.Image()))):
        if column in rows.column_names and rows.features[column] == decoded:
            encoded = datasets.Image(decode=False)
            rows = rows.cast_column(column, encoded if column == "image" else datasets.Sequence(encoded))
    return rows


def _dataset_example(rows: Any, folder: Path, index: int, policy: ImagePolicy) -> RawExample:
    where, row = f"{folder}, row {index}", rows[index]
    texts = {
        "prompt": row.get("prompt", row.get("question")),
        "reasoning": row.get("reasoning"),
        "answer": row.get("answer"),
    }
    given = {name: text for name, text in texts.items() if text is not None}
    fields = parse_fields(_Fields, given, InputError, _INVALID, where=where)
    count = len(_encoded_images(row, where))

    def image(number: int) -> Image.Image:
        return _load(_encoded_images(rows[index], where)[number], policy, f"{where}, image {number + 1}")

    images = tuple(partial(image, number) for number in range(count))
    return RawExample(f"{folder.name}, row {index}", images, fields.prompt, fields.reasoning, fields.answer)


def _encoded_images(row: Mapping[str, Any], where: str) -> Sequence[ImageSource]:
    """Bytes or paths of a row's images."""
    columns = [row.get("image"), *(row.get("images") or ())]
    images = [image for image in columns if image is not None]
    sources = [p.get("bytes") or p.get("path") if isinstance(p, dict) else p for p in images]
    known = [source for source in sources if isinstance(source, str | bytes)]
    if len(known) < len(sources):
        raise InputError(
            "An image of the calibration set has an unknown format.",
            where=where,
            expected="a column `image` or `images` of datasets.Image, or of paths",
            found=", ".join(sorted({type(image).__name__ for image in images})),
            fix="cast the column to datasets.Image",
        )
    return known
