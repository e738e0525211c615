"""The way from images and a question to an answer where a library decodes, over any `generation.Generator`:

tiles -> vision -> projector -> the library -> reasoning and text
"""

from __future__ import annotations

from r1v_export.contract import PREFILL_CHUNK, VisionEngine
from r1v_export.generation import Generator
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.runner.base import TILES_PER_RUN, BaseRunner
from r1v_export.runner.batching.generator_batch import GeneratorBatch
from r1v_export.serialized.pipeline import PipelineDocument


class GeneratorRunner(BaseRunner):
    """Answers questions with a library's own decoding. Requests of a batch are open at the same time.

    Args:
        generator: the language model.
        vision: encodes images.
        tiles_per_run: how many tiles that does together: more where it is spread over several GPUs.

    The other arguments are `BaseRunner`'s.
    """

    def __init__(
        self,
        generator: Generator,
        vision: VisionEngine,
        tokenizer: Tokenizer,
        pipeline: PipelineDocument,
        hidden: int,
        tiles_per_run: int = TILES_PER_RUN,
    ) -> None:
        positions = min(generator.max_tokens, pipeline.positions.max_positions)
        super().__init__(vision, tokenizer, pipeline, hidden, positions, tiles_per_run)
        self.generator = generator

    @property
    def name(self) -> str:
        return self.generator.name

    def open_batch(
        self,
        max_rows: int,
        cache_bytes: int | None = None,
        keep_prefixes: bool = False,
        prefill_chunk: int | None = PREFILL_CHUNK,
        draft_tokens: int = 0,
    ) -> GeneratorBatch:
        """Requests in the library together; cache and loop are its own, with their sizes, prefixes and drafts."""
        return GeneratorBatch(self.generator, self.max_positions, max_rows)
