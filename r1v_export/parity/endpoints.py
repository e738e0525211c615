"""The two sides of a comparison: an engine, with all that turns a question about images into its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from r1v_export.contract import BlockwiseEngine, Engine
from r1v_export.parity.samples import ParitySample
from r1v_export.processing.pipeline_document import document_template
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.prompt import Turn, encode
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.serialized.pipeline import PipelineDocument


class Inputs(NamedTuple):
    """One sample as an engine is given it: pixel_values float32 [T, 3, H, W], and input_ids int64 [S]."""

    pixel_values: np.ndarray
    input_ids: np.ndarray


@dataclass(frozen=True)
class Endpoint:
    """The reference, with the checkpoint's own files, or the candidate, with those of its bundle.

    Each side has its own tokenizer and pipeline: a bundle that carries other files than its checkpoint shows at the
    boundaries `pixels` and `prompt`.
    """

    engine: Engine
    tokenizer: Tokenizer
    pipeline: PipelineDocument
    """Of the bundle, or `describe_pipeline` of the checkpoint."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        return self.pipeline.stop_ids

    def inputs(self, sample: ParitySample) -> Inputs:
        """Tile the images and encode the question as one user turn."""
        return encode_inputs(self.tokenizer, self.pipeline, sample)


@dataclass(frozen=True)
class BlockwiseEndpoint:
    """A side of a streamed comparison: an engine of which one block is held at a time, and the same files."""

    engine: BlockwiseEngine
    tokenizer: Tokenizer
    pipeline: PipelineDocument

    def inputs(self, sample: ParitySample) -> Inputs:
        """Tile the images and encode the question as one user turn."""
        return encode_inputs(self.tokenizer, self.pipeline, sample)


def encode_inputs(tokenizer: Tokenizer, pipeline: PipelineDocument, sample: ParitySample) -> Inputs:
    """A sample as one user turn, by one side's files."""
    pixels_T3HW, tiles_per_image = pixel_values(sample.images, pipeline.tiling.spec)
    turn = Turn("user", sample.question, images=len(sample.images))
    template, max_length = document_template(pipeline), pipeline.positions.max_positions
    ids = encode(tokenizer, template, [turn], tiles_per_image, pipeline.tokens_per_tile, max_length=max_length)
    return Inputs(pixels_T3HW, np.array(ids, dtype=np.int64))
