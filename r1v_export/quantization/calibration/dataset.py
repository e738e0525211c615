"""Calibration samples: images and texts through the real tiler and prompt template, in a fixed order, each hashed.

A calibration set is one of
* nothing: the built-in generator's calibration images and questions, for r1v-nano;
* a `.jsonl` file, or a folder that holds one: a line is `{"image": "a.png", "prompt": "...", "answer": "..."}`, with
  `images` (a list) for several images, none for text alone, and optionally `reasoning`; paths are relative to the file;
* a folder saved with Hugging Face `datasets`, with columns of the same names (`question` stands for `prompt` too).

Where there is no answer the model's own greedy generate_responses takes its place: a reasoning model spends most of its
tokens on its reasoning, so it has to be calibrated on reasoning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import ImagePolicy
from r1v_export.count import Count
from r1v_export.errors import InputError, UsageError
from r1v_export.manifest import to_json
from r1v_export.processing.preprocess import pixel_values, rgb_image
from r1v_export.processing.prompt import REASONING_END, Template, Turn, encode, template_of
from r1v_export.processing.tiling import tile_count
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.quantization.calibration.raw_examples import RawExample

ResponseGenerator = Callable[[Sequence[RawExample]], Sequence[Sequence[int]]]
"""Gives the token ids of the model's greedy answer to each example, its stop token included."""

_RESPONSES_PER_BATCH = 8


@dataclass(frozen=True, order=True)
class Shard:
    """The part of a calibration set that one of `count` runs takes: every `count`-th sample from `index` on."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(
                "There is no such shard.",
                expected="1/N to N/N",
                found=str(self),
                fix="give --shard as 1/4, for example",
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/8", the second of eight.

        Raises:
            UsageError: not two whole numbers with a slash between them, or no such shard.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            fix = "pass the number of this part, a slash, and how many parts there are"
            raise UsageError("Invalid --shard.", where="--shard", expected="I/N, such as 2/8", found=text, fix=fix)
        return cls(int(index) - 1, int(count))

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


@dataclass(frozen=True)
class CalibrationSample:
    """One sequence that goes through the model.

    Attributes:
        index: position in the whole calibration set, whatever the shard.
        name: where it comes from, without a path.
        sha256: hash of its token ids and of its images' pixels.
        token_ids: prompt, image tokens and response.
        prompt_tokens: how many of them come before the response.
        tiles: number of tiles of all its images.
        pixels: makes its tiles, normalized, float32 [tiles, 3, S, S].
    """

    index: int
    name: str
    sha256: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    tiles: int
    pixels: Callable[[], np.ndarray]


@dataclass(frozen=True)
class CalibrationSet:
    """The samples of one shard, of `total` in the whole set; `sha256` is of the whole set's names and texts.

    `image_policy` is how image files were read.
    """

    samples: tuple[CalibrationSample, ...]
    shard: Shard
    total: int
    sha256: str
    image_policy: ImagePolicy = "as_displayed"


def require_sample_for_each(shards: int, samples: int) -> None:
    """Check that no shard is left without a sample.

    Raises:
        InputError: there are more shards than samples.
    """
    if shards > samples:
        raise InputError(
            "There are more shards than calibration samples.",
            expected=f"at most {samples}",
            found=shards,
            fix="pass fewer shards, or more samples: with --samples, or in the set that --calib names",
        )


def prepare(
    examples: Sequence[RawExample],
    checkpoint: Checkpoint,
    *,
    shard: Shard | None = None,
    generate_responses: ResponseGenerator | None = None,
    max_tokens: int | None = None,
    on_sample: Callable[[], None] = lambda: None,
    image_policy: ImagePolicy = "as_displayed",
) -> CalibrationSet:
    """Make samples from examples: decode, tile and tokenize; only hashes and tokens are kept.

    Args:
        shard: the part to prepare; the whole set if omitted.
        generate_responses: generates responses to examples without an answer; if omitted, their prompts are used alone.
        max_tokens: a longer sample loses the end of its response; the model's context length if omitted.
        on_sample: called after each.
        image_policy: that the examples' image files are read by.

    Raises:
        InputError: no examples, no images in any of them, an image that cannot be used, a prompt too long.
    """
    shard = shard or Shard()
    _require_images(examples)
    require_sample_for_each(shard.count, len(examples))
    context = checkpoint.spec.language.max_position_embeddings
    maker = _SampleMaker(checkpoint, min(max_tokens or context, context))
    indices = range(shard.index, len(examples), shard.count)
    responses = _self_generated_responses([examples[index] for index in indices], generate_responses)
    samples = []
    for index, response in zip(indices, responses, strict=True):
        samples.append(maker.make(index, examples[index], response))
        on_sample()
    return CalibrationSet(tuple(samples), shard, len(examples), _texts_sha256(examples), image_policy)


def _require_images(examples: Sequence[RawExample]) -> None:
    if not examples:
        fix = "add samples, or omit --calib to use generated ones"
        raise InputError("The calibration set is empty.", expected="at least one sample", found="none", fix=fix)
    if not any(example.images for example in examples):
        raise InputError(
            "No sample of the calibration set shows an image.",
            expected="images and prompts, as the model will be used",
            found=f"{Count(len(examples), 'text')} alone",
            fix="name images under `image`; without them vision tower and projector cannot be calibrated",
        )


def _self_generated_responses(
    examples: Sequence[RawExample], generate_responses: ResponseGenerator | None
) -> list[Sequence[int] | None]:
    """The model's own response to each example without an answer, None for the others."""
    responses: list[Sequence[int] | None] = [None] * len(examples)
    if generate_responses is None:
        return responses
    unanswered = [index for index, example in enumerate(examples) if example.answer is None]
    for start in range(0, len(unanswered), _RESPONSES_PER_BATCH):
        batch = unanswered[start : start + _RESPONSES_PER_BATCH]
        for index, response in zip(batch, generate_responses([examples[index] for index in batch]), strict=True):
            responses[index] = response
    return responses


class _SampleMaker:
    """One checkpoint's tokenizer, template and tiling, applied to examples."""

    def __init__(self, checkpoint: Checkpoint, max_tokens: int) -> None:
        self.spec, self.max_tokens = checkpoint.spec, max_tokens
        self.tokenizer = Tokenizer.from_folder(checkpoint.folder)
        self.template: Template = template_of(self.spec)

    def make(self, index: int, example: RawExample, response: Sequence[int] | None) -> CalibrationSample:
        images = example.load_images()
        tiling = self.spec.tiling
        tiles = [tile_count(*rgb_image(image).size, tiling) for image in images]
        prompt_ids = self._prompt_ids(example, tiles)
        token_ids = tuple(prompt_ids + self._response_ids(example, response))[: self.max_tokens]
        sha256 = _sha256(token_ids, images)

        def pixels() -> np.ndarray:
            return pixel_values(example.load_images(), tiling)[0]

        return CalibrationSample(index, example.name, sha256, token_ids, len(prompt_ids), sum(tiles), pixels)

    def _prompt_ids(self, example: RawExample, tiles_per_image: Sequence[int]) -> list[int]:
        turn = Turn("user", example.prompt, images=len(tiles_per_image))
        think = example.answer is None or example.reasoning is not None or REASONING_END in example.answer
        tokens_per_tile = self.spec.tokens_per_tile
        try:
            return encode(
                self.tokenizer,
                self.template,
                [turn],
                tiles_per_image,
                tokens_per_tile,
                think=think,
                max_length=self.max_tokens,
            )
        except InputError as error:
            raise InputError(
                error.what, where=example.name, expected=error.expected, found=error.found, fix=error.fix
            ) from error

    def _response_ids(self, example: RawExample, response: Sequence[int] | None) -> list[int]:
        if example.answer is None:
            return list(response or ())
        reasoning = "" if example.reasoning is None else f"{example.reasoning}\n{REASONING_END}\n\n"
        stop = self.tokenizer.special_id(self.template.stop_tokens[0])
        return [*self._encode_response(reasoning + example.answer), stop]

    def _encode_response(self, text: str) -> list[int]:
        """Ids of a response, the end of its reasoning being one token where the tokenizer has it."""
        end = self.tokenizer.token_id(REASONING_END)
        if end is None:
            return self.tokenizer.encode_text(text)
        reasoning, *rest = text.split(REASONING_END)
        ids = self.tokenizer.encode_text(reasoning)
        for part in rest:
            ids += [end, *self.tokenizer.encode_text(part)]
        return ids


def _texts_sha256(examples: Sequence[RawExample]) -> str:
    texts = [
        (example.name, len(example.images), example.prompt, example.reasoning, example.answer) for example in examples
    ]
    return hashlib.sha256(to_json(texts).encode()).hexdigest()


def _sha256(token_ids: Sequence[int], images: Iterable[Image.Image]) -> str:
    digest = hashlib.sha256(np.asarray(token_ids, dtype="<i8").tobytes())
    for image in images:
        digest.update(f"{image.width}x{image.height}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()
