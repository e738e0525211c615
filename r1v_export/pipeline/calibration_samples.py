"""Which samples a build calibrates on: the first of the set; where the effort is `quick` the shortest of those that a
full calibration takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.pipeline.effort import SAMPLES, with_effort
from r1v_export.quantization.calibration.dataset import CalibrationSample, prepare
from r1v_export.quantization.calibration.raw_examples import RawExample, read_examples

MAX_RESPONSE_TOKENS = 512
"""Tokens of a self-generated response to a calibration prompt without an answer; most of them are reasoning."""
_MEASURED = 8
"""Samples that are prepared to learn how long they are; the others are taken to be like them."""


@dataclass(frozen=True)
class SampleSize:
    """How much of a sample goes through the model."""

    tokens: int
    tiles: int


def examples_read(calibration: CalibrationConfig) -> int:
    """How many examples of the set a calibration chooses its samples from.

    Args:
        calibration: of `with_effort`.
    """
    assert calibration.samples is not None
    return max(calibration.samples, SAMPLES["full"]) if calibration.effort == "quick" else calibration.samples


def calibration_examples(config: BuildConfig, checkpoint: Checkpoint) -> list[RawExample]:
    """The examples that a model is calibrated on; with effort `quick` those with the fewest tokens, in that order.

    Raises:
        InputError: the calibration data cannot be used.
        CapabilityError: a package that it needs is not installed.
    """
    calibration = with_effort(config, checkpoint.spec).calibration
    assert calibration.samples is not None
    quick = calibration.effort == "quick"
    examples = read_examples(calibration.data, examples_read(calibration), config.image_policy)
    if not quick or len(examples) < 2:
        return examples
    prepared = prepare(examples, checkpoint, image_policy=config.image_policy).samples
    by_length = sorted(range(len(examples)), key=lambda index: len(prepared[index].token_ids))
    shortest = by_length[: calibration.samples]
    with_images = [index for index in by_length if examples[index].images]
    if not any(examples[index].images for index in shortest):
        shortest[-1] = with_images[0]  # prepare has refused sets without any
    return [examples[index] for index in shortest]


def sample_sizes(config: BuildConfig, checkpoint: Checkpoint, examples: Sequence[RawExample]) -> list[SampleSize]:
    """The sizes of calibration samples, from those of the first few, or of all where they are sorted by length.

    Raises:
        InputError: the calibration data cannot be used.
    """
    quick = with_effort(config, checkpoint.spec).calibration.effort == "quick"
    measured = list(examples if quick else examples[:_MEASURED])
    if examples and not any(example.images for example in measured):
        measured += [next(example for example in examples if example.images)]
    samples = prepare(measured, checkpoint, image_policy=config.image_policy).samples
    sizes = [_size(sample, example) for sample, example in zip(samples, measured, strict=True)]
    return list(islice(cycle(sizes), len(examples)))


def _size(sample: CalibrationSample, example: RawExample) -> SampleSize:
    response = MAX_RESPONSE_TOKENS if example.answer is None else 0
    return SampleSize(len(sample.token_ids) + response, sample.tiles)
