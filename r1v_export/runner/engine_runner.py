"""The whole way from images and a question to an answer, over any `contract.Engine`:

tiles -> vision -> projector -> embed -> prefill -> decode -> reasoning and text
"""

from __future__ import annotations

from r1v_export.contract import PREFILL_CHUNK, Engine
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.runner.base import BaseRunner
from r1v_export.runner.batching.cache_rows import CacheRows
from r1v_export.runner.batching.engine_batch import EngineBatch
from r1v_export.serialized.pipeline import PipelineDocument


class EngineRunner(BaseRunner):
    """Answers questions with one engine.

    Args:
        engine: the reference or any built target.
        image_note: what people should know of what encodes images, in a line; None if nothing.
        decoder_note: the same of what decodes.

    The other arguments are `BaseRunner`'s.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        pipeline: PipelineDocument,
        image_note: str | None = None,
        decoder_note: str | None = None,
    ) -> None:
        super().__init__(engine, tokenizer, pipeline, engine.sizes.hidden, pipeline.positions.max_positions)
        self.engine, self.image_note, self.decoder_note = engine, image_note, decoder_note

    @property
    def name(self) -> str:
        return self.engine.name

    def open_batch(
        self,
        max_rows: int,
        cache_bytes: int | None = None,
        keep_prefixes: bool = False,
        prefill_chunk: int | None = PREFILL_CHUNK,
        draft_tokens: int = 0,
    ) -> EngineBatch:
        rows = CacheRows(self.engine, self.max_positions, max_rows, cache_bytes, keep_prefixes, drafts=draft_tokens > 0)
        image_token_id, end_tag = self.pipeline.image_token_id, self.reasoning_end_ids()
        return EngineBatch(self.engine, image_token_id, rows, prefill_chunk, end_tag, draft_tokens)

    def reasoning_end_ids(self) -> list[int]:
        """The tokens of the tag that ends reasoning: one of its own, or as many as its text takes."""
        tag = self.pipeline.reasoning.pair[1]
        token_id = self.tokenizer.token_id(tag)
        return self.tokenizer.encode_text(tag) if token_id is None else [token_id]
