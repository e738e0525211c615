"""The comparison along the data flow: both endpoints compute, every boundary is compared, statistics are merged.

Up to `decode`, each stage of the candidate is fed what the reference fed its own, so an error is counted where it
arises and nowhere after. `end_to_end` and `tokens` then run the candidate on its own outputs, from its own pixels and
prompt to its own answer.

Shape letters: T tiles, B samples of a batch, S prompt tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np

from r1v_export.contract import Engine, VisionBlocks
from r1v_export.parity.boundary_statistics import BoundaryStatistics, no_images, of_row
from r1v_export.parity.endpoints import Endpoint
from r1v_export.parity.metrics import TensorStatistics, TokenStatistics, top1_margin
from r1v_export.parity.samples import ParitySample
from r1v_export.progress import ProgressCallback, ignore_progress, subrange
from r1v_export.runner.kv_cache import KVCache, embed_chosen, new_token_budget, open_cache, plan_capacity, prefill

TILES_AT_ONCE = 8
"""Tiles per call of the vision graph; their features are dropped before the next call."""

_TOGETHER = 0.75
"""Share of the decoders' time, roughly, in which both decode the reference's answers; the candidate's own follow."""


@dataclass(frozen=True)
class BatchShares:
    """How the time of a batch is divided, roughly, for its progress.

    Attributes:
        encoding: of the batch's time: images and prompts become embeddings.
        prefill: of the decoders' time: that of the prompts.
    """

    encoding: float = 0.25
    prefill: float = 0.2


class Answers(NamedTuple):
    """Greedy answers to one sample; `margins` are the reference's top-1 margins, one for each of its tokens."""

    sample: ParitySample
    reference: list[int]
    candidate: list[int]
    margins: list[float]


@dataclass
class BoundaryComparator:
    """Compares batch after batch; the results are in `found`.

    Args:
        blocks: also compare each ViT block; both engines then offer `vision_blocks`.
        max_new_tokens: longest answer.
        shares: of a batch's time.
        one_sequence: a batch is one sample, decoded by what engines have for one sequence.
    """

    reference: Endpoint
    candidate: Endpoint
    blocks: bool = False
    max_new_tokens: int = 96
    shares: BatchShares = BatchShares()
    one_sequence: bool = False
    found: BoundaryStatistics = field(default_factory=BoundaryStatistics)

    def compare_vocabulary(self) -> None:
        """Look up every token: an embedding row that no sample uses may be wrong too."""
        self.found.record_vocabulary(
            self.reference.engine.embed, self.candidate.engine.embed, self.reference.engine.sizes
        )

    def compare_batch(
        self, samples: Sequence[ParitySample], on_progress: ProgressCallback = ignore_progress
    ) -> list[Answers]:
        """Take a batch through all boundaries.

        Args:
            on_progress: called after each prompt, and after each step of decoding.
        """
        prompts_SE, own_prompts_SE = [], []
        for done, sample in enumerate(samples, 1):
            inputs, own_inputs = self.reference.inputs(sample), self.candidate.inputs(sample)
            self.found.record_inputs(inputs, own_inputs, sample.name)
            images_NE, own_images_NE = self._compare_vision(inputs.pixel_values, sample.name)
            if not np.array_equal(inputs.pixel_values, own_inputs.pixel_values):
                own_images_NE = image_embeds(self.candidate.engine, own_inputs.pixel_values)
            prompts_SE.append(self._compare_embeds(inputs.input_ids, images_NE, sample.name))
            own_prompts_SE.append(embed_prompt(self.candidate.engine, own_inputs.input_ids, own_images_NE))
            on_progress(self.shares.encoding * done / len(samples), 1.0)
        names, encoded = [sample.name for sample in samples], self.shares.encoding
        decoded = encoded + _TOGETHER * (1 - encoded)
        together, alone = subrange(on_progress, encoded, decoded), subrange(on_progress, decoded, 1.0)
        expected, first_logits_BV = self._decode_together(prompts_SE, names, together)
        # Answers of the candidate's own are nearly always as long.
        steps = max(map(len, expected.tokens))
        found = self._decode_alone(own_prompts_SE, first_logits_BV, names, steps, alone)
        for tokens, own_tokens in zip(expected.tokens, found.tokens, strict=True):
            self.found.record("tokens", TokenStatistics.of(tokens, own_tokens))
        return [Answers(*row) for row in zip(samples, expected.tokens, found.tokens, expected.margins, strict=True)]

    def compare_blocks(self, pixels_T3HW: np.ndarray, sample: str) -> None:
        """Compare the output of every ViT block."""
        reference, candidate = (cast(VisionBlocks, endpoint.engine) for endpoint in (self.reference, self.candidate))
        for start, tiles_T3HW in _tile_groups(pixels_T3HW):
            pairs = zip(reference.vision_blocks(tiles_T3HW), candidate.vision_blocks(tiles_T3HW), strict=True)
            for block, (expected, found) in enumerate(pairs):
                self.found.record(f"vision_block.{block}", TensorStatistics.of(expected, found, sample, offset=start))

    def _compare_vision(self, pixels_T3HW: np.ndarray, sample: str) -> tuple[np.ndarray, np.ndarray]:
        """Vision and projector, stage by stage. Returns the image embeddings [N, E] of the reference, and those that
        the candidate makes from the pixels alone."""
        reference, candidate = self.reference.engine, self.candidate.engine
        if self.blocks:
            self.compare_blocks(pixels_T3HW, sample)
        images, own_images = [no_images(reference.sizes)], [no_images(candidate.sizes)]
        for start, tiles_T3HW in _tile_groups(pixels_T3HW):
            features, own_features = reference.vision(tiles_T3HW), candidate.vision(tiles_T3HW)
            self.found.record("vision", TensorStatistics.of(features, own_features, sample, offset=start))
            embeds, found = reference.projector(features), candidate.projector(features)
            self.found.record("projector", TensorStatistics.of(embeds, found, sample, offset=start))
            images.append(_flat(embeds))
            own_images.append(_flat(candidate.projector(own_features)))
        return np.concatenate(images), np.concatenate(own_images)

    def _compare_embeds(self, input_ids_S: np.ndarray, images_NE: np.ndarray, sample: str) -> np.ndarray:
        expected, found = (
            embed_prompt(endpoint.engine, input_ids_S, images_NE) for endpoint in (self.reference, self.candidate)
        )
        self.found.record("embeds", TensorStatistics.of(expected, found, sample))
        return expected

    def _decode_together(
        self, prompts_SE: Sequence[np.ndarray], names: Sequence[str], on_progress: ProgressCallback
    ) -> tuple[GreedyAnswers, np.ndarray]:
        """The reference answers greedily; the candidate is fed the same embeddings at every step.

        Returns the answers, and the reference's logits [B, V] after the prompts.
        """
        endpoint = self.reference
        answers, caches = self._start(endpoint, prompts_SE, (endpoint.engine, self.candidate.engine))
        filled = self.shares.prefill
        parts = [subrange(on_progress, 0.0, filled / 2), subrange(on_progress, filled / 2, filled)]
        expected_BV, found_BV = first_logits_BV, _ = [
            prefill(cache, prompts_SE, threading.Event(), part) for cache, part in zip(caches, parts, strict=True)
        ]
        for row, name in enumerate(names):
            self.found.record("prefill", of_row(row, expected_BV, found_BV, name))
        step, decoding = 0, subrange(on_progress, self.shares.prefill, 1.0)
        while answers.append_token(expected_BV):
            step += 1
            decoding(step, answers.longest)
            embeds_B1E = embed_chosen(endpoint.engine, answers.last)
            expected_BV, found_BV = [cache.append(embeds_B1E, answers.unfinished_B) for cache in caches]
            for row in answers.unfinished:
                self.found.record_step(step, of_row(row, expected_BV, found_BV, names[row], step))
        return answers, first_logits_BV

    def _decode_alone(
        self,
        prompts_SE: Sequence[np.ndarray],
        first_logits_BV: np.ndarray,
        names: Sequence[str],
        likely_steps: int,
        on_progress: ProgressCallback,
    ) -> GreedyAnswers:
        """The candidate answers greedily, on its own outputs throughout."""
        endpoint = self.candidate
        answers, (cache,) = self._start(endpoint, prompts_SE, (endpoint.engine,))
        logits_BV = prefill(cache, prompts_SE, threading.Event(), subrange(on_progress, 0.0, self.shares.prefill))
        for row, name in enumerate(names):
            self.found.record("end_to_end", of_row(row, first_logits_BV, logits_BV, name))
        step, decoding = 0, subrange(on_progress, self.shares.prefill, 1.0)
        while answers.append_token(logits_BV):
            step += 1
            decoding(step, likely_steps)
            embeds_B1E = embed_chosen(endpoint.engine, answers.last)
            logits_BV = cache.append(embeds_B1E, answers.unfinished_B)
        return answers

    def _start(
        self, endpoint: Endpoint, prompts_SE: Sequence[np.ndarray], engines: Sequence[Engine]
    ) -> tuple[GreedyAnswers, list[KVCache]]:
        """Empty answers, and a cache that holds prompts and answers for each engine."""
        positions = endpoint.pipeline.positions.max_positions
        max_new_tokens = [new_token_budget(len(prompt), self.max_new_tokens, positions) for prompt in prompts_SE]
        longest = max(
            len(prompt) + max_new_tokens for prompt, max_new_tokens in zip(prompts_SE, max_new_tokens, strict=True)
        )
        capacity = plan_capacity(longest, positions)
        rows, one = len(prompts_SE), self.one_sequence
        caches = [open_cache(engine, rows, capacity, one_sequence=one) for engine in engines]
        return GreedyAnswers(max_new_tokens, endpoint.stop_ids), caches


class GreedyAnswers:
    """The answers of a batch while they are generated; the most likely token is taken, the first of equals.

    Attributes:
        longest: tokens that an answer may have at most.
    """

    def __init__(self, max_new_tokens: Sequence[int], stop_ids: frozenset[int]) -> None:
        self.tokens: list[list[int]] = [[] for _ in max_new_tokens]
        self.margins: list[list[float]] = [[] for _ in max_new_tokens]
        self.unfinished_B = np.ones(len(max_new_tokens), dtype=np.int64)
        self._budgets, self._stop_ids = max_new_tokens, stop_ids
        self.longest = max(max_new_tokens)

    def append_token(self, logits_BV: np.ndarray) -> bool:
        """Take the next token of every unfinished answer; false when all are finished."""
        for row in self.unfinished:
            token = int(logits_BV[row].argmax())
            self.tokens[row].append(token)
            self.margins[row].append(top1_margin(logits_BV[row]))
            self.unfinished_B[row] = token not in self._stop_ids and len(self.tokens[row]) < self._budgets[row]
        return bool(self.unfinished_B.any())

    @property
    def unfinished(self) -> list[int]:
        """Rows that go on."""
        return [int(row) for row in np.flatnonzero(self.unfinished_B)]

    @property
    def last(self) -> np.ndarray:
        """The latest token of each row; a finished row repeats its last one, and its results are ignored."""
        return np.array([[tokens[-1]] for tokens in self.tokens], dtype=np.int64)


def _tile_groups(pixels_T3HW: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(index of the first tile, tiles) of consecutive groups of tiles."""
    return (
        (start, np.ascontiguousarray(pixels_T3HW[start : start + TILES_AT_ONCE]))
        for start in range(0, len(pixels_T3HW), TILES_AT_ONCE)
    )


def image_embeds(engine: Engine, pixels_T3HW: np.ndarray) -> np.ndarray:
    """Image embeddings [N, E] of an engine on its own."""
    parts = [_flat(engine.projector(engine.vision(tiles))) for _, tiles in _tile_groups(pixels_T3HW)]
    return np.concatenate([no_images(engine.sizes), *parts])


def embed_prompt(engine: Engine, input_ids_S: np.ndarray, images_NE: np.ndarray) -> np.ndarray:
    """Embeddings [S, E] of one prompt."""
    embeds_SE: np.ndarray = engine.embed(input_ids_S[None], images_NE)[0]
    return embeds_SE


def _flat(embeds_TNE: np.ndarray) -> np.ndarray:
    return embeds_TNE.reshape(-1, embeds_TNE.shape[-1])
