"""Continuous batching over an engine: prompts in pieces, each on its own row, between steps that decode all others, or
in them where the decoder takes rows of different lengths.

Shape letters: B rows that are decoded, R rows of a step, S tokens, P of them with logits, N image tokens, E hidden
size, V vocabulary.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from r1v_export.contract import PREFILL_CHUNK, Engine
from r1v_export.count import Count
from r1v_export.errors import R1VError
from r1v_export.generation import Sampling
from r1v_export.log_event import log_event
from r1v_export.runner.answer import AnswerStream, TokenEvent
from r1v_export.runner.batching.batch import Batch, CacheUsage
from r1v_export.runner.batching.cache_rows import CacheRows
from r1v_export.runner.batching.prompt_pieces import Piece, PromptPieces
from r1v_export.runner.batching.row_state import RowState
from r1v_export.runner.batching.speculation import Draft, StepTimes, draft_length
from r1v_export.runner.encoded_prompt import EncodedPrompt, TokenSequence
from r1v_export.runner.finite import require_finite
from r1v_export.runner.kv_cache import CAPACITY_STEP, embed_chosen, new_token_budget, pad_right, plan_capacity
from r1v_export.runner.sampling import Sampler

_LOG = logging.getLogger(__name__)

HEADROOM = CAPACITY_STEP
"""Slots behind its tokens that a row is given, so that it does not have to give way at once."""


class Scores(NamedTuple):
    """What a step computed for a request.

    Attributes:
        logits: [P, V], after its last token, and after each token of the draft that was checked.
        draft: of its next tokens; more of it than was checked may be there.
    """

    logits: np.ndarray
    draft: Draft


class Decoding(NamedTuple):
    """What a step decodes, in the order of the rows.

    Attributes:
        states: whose prompt is in the cache.
        drafts: of the next tokens of each.
        token_ids: of each the last token, and what of the draft is checked.
    """

    states: list[RowState]
    drafts: list[Draft]
    token_ids: list[list[int]]

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens of each [B]."""
        return np.array([len(ids) for ids in self.token_ids], dtype=np.int64)


Scored = list[tuple[RowState, Scores | R1VError]]
"""Requests that take tokens in a step, or failed in it."""

Events = list[tuple[RowState, TokenEvent | R1VError]]


@contextmanager
def _adding_time(states: Sequence[RowState]) -> Iterator[None]:
    """Add the duration of a block to the timings of requests."""
    clock = time.perf_counter()
    yield
    step_ms = (time.perf_counter() - clock) * 1000
    for state in states:
        state.add_time(step_ms)


class EngineBatch(Batch[RowState]):
    """Requests over one engine. Each step runs the decoder once: it decodes one token of every request whose prompt is
    in the cache, and more where drafts of them are right, or it prefills tokens of one prompt; where the engine has
    `PrefillLimits.together` it does both, and for several prompts. So every token is handed out as soon as it is known.

    Rows take what is used of the cache, and not what answers may come to: that may be the model's whole context. Where
    a row needs more than the budget has left, the request that was admitted last gives up its row. It gets one again
    before any new request does, and its prompt and answer so far are prefilled there. The oldest request never waits,
    so each one ends.

    Args:
        engine: the reference or any built target.
        image_token_id: stands in prompts for a row of an image.
        rows: of the engine's cache.
        prefill_chunk: prompt tokens of a step, and of all steps between two that decode, at most: bounds the memory of
            attention, and the wait of all others. None for what the engine says, see `PrefillLimits`.
        end_tag: tokens that end reasoning, for `Sampling.max_reasoning_tokens`.
        draft_tokens: of a request that a step checks, at most; 0 decodes token by token.
    """

    def __init__(
        self,
        engine: Engine,
        image_token_id: int,
        rows: CacheRows,
        prefill_chunk: int | None = PREFILL_CHUNK,
        end_tag: Sequence[int] = (),
        draft_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.end_tag, self.draft_tokens, self._step_times = end_tag, draft_tokens, StepTimes()
        self.engine, self.image_token_id, self.rows = engine, image_token_id, rows
        self._prompts = PromptPieces(rows, prefill_chunk)
        self._holding: list[RowState] = []
        """Requests with a row, the oldest first."""
        self._preempted: deque[RowState] = deque()
        """Requests that gave up their row, the oldest first; all are younger than those that have one."""

    @property
    def running(self) -> Sequence[RowState]:
        return [*self._holding, *self._preempted]

    def admit(self, prompt: EncodedPrompt, sampling: Sampling, stream: AnswerStream) -> RowState | None:
        length = len(prompt.token_ids)
        max_new_tokens = new_token_budget(length, sampling.max_new_tokens, self.rows.max_positions)
        max_new_tokens = min(max_new_tokens, self.rows.room_behind(length))
        needed = length + min(max_new_tokens, HEADROOM)
        if self._preempted or not self.rows.has_room(needed):
            return None
        tokens = TokenSequence.of(prompt, self.image_token_id)
        sampler = Sampler(sampling, prompt.token_ids, self.engine.sizes.vocab)
        row = self.rows.acquire(tokens, needed)
        state = RowState(stream, prompt, tokens, row, sampler, max_new_tokens, self.end_tag)
        self._holding.append(state)
        return state

    def step(self) -> list[tuple[RowState, TokenEvent | R1VError]]:
        running = self.running
        with _adding_time(running):
            self._make_room()
            self._resume()
            scored = self._run()
        with _adding_time(running):
            events = [event for state, scores in scored for event in self._take(state, scores)]
        for state, _ in scored:
            if state.done:
                self.drop(state)
        return events

    def drop(self, state: RowState) -> None:
        if state in self._preempted:
            self._preempted.remove(state)
        elif state in self._holding:
            self._release(state)

    def cache_usage(self) -> CacheUsage:
        return self.rows.usage()

    def close(self) -> None:
        super().close()
        self.rows.clear()

    def _release(self, state: RowState) -> None:
        """Take a request's row."""
        self._holding.remove(state)
        state.prefilled = False
        self.rows.release(state.row)

    def _make_room(self) -> None:
        """Reserve a slot for the next token of each request that is decoded; the youngest give up theirs for it."""
        for state in [state for state in self._holding if state.prefilled]:
            needed = plan_capacity(len(state.row.tokens) + 1, state.most_tokens)
            while state in self._holding and not self.rows.reserve(state.row, needed):
                youngest = self._holding[-1]
                self._release(youngest)
                youngest.recall()
                self._preempted.appendleft(youngest)
                self.counters.preempted += 1

    def _resume(self) -> None:
        """Give requests that gave up their rows others, as far as there are."""
        while self._preempted:
            state = self._preempted[0]
            needed = min(len(state.tokens) + HEADROOM, state.most_tokens)
            if not self.rows.has_room(needed):
                return
            state.row = self.rows.acquire(state.tokens, needed)
            self._holding.append(self._preempted.popleft())

    def _take(self, state: RowState, scores: Scores | R1VError) -> Events:
        """Give a request its next tokens: the first one, and the one behind each token of the draft that is right."""
        events: Events = []
        chosen: list[int] = []
        if isinstance(scores, R1VError):
            state.failed = True
            return [(state, scores)]
        for index, logits_V in enumerate(scores.logits):
            choice = state.choose(logits_V)
            if isinstance(choice, R1VError):
                state.failed = True
                events.append((state, choice))
                break
            self.counters.generated_tokens += 1
            events.append((state, state.take(choice)))
            chosen.append(choice.token_id)
            if state.done or index + 1 == len(scores.logits) or choice.token_id != scores.draft.token_ids[index]:
                break
            state.row.tokens.append(choice.token_id)
        state.acceptance.learn(scores.draft, chosen)
        self.counters.draft_tokens += len(scores.logits) - 1
        self.counters.accepted_tokens += max(0, len(chosen) - 1)
        self.rows.forget_rejected(state.row)
        return events

    def _run(self) -> Scored:
        """Run the decoder: for a prompt, for all whose prompt is in the cache, or for both."""
        waiting = [state for state in self._holding if not state.prefilled]
        decodes = len(waiting) < len(self._holding)
        if self.rows.limits.prefill.together:
            return self._decode_and_prefill(self._decoding(), self._prompts.together(waiting, decodes))
        piece = self._prompts.alone(waiting, decodes)
        if piece is not None:
            return self._prefill(piece)
        return self._decode(self._decoding())

    def _decoding(self) -> Decoding:
        """What a step decodes: the last token of every request whose prompt is in the cache, and a draft of the next
        ones where that gives more tokens in the same time."""
        prefilled = (state for state in self._holding if state.prefilled)
        states = sorted(prefilled, key=lambda state: state.row.index)
        if not states:
            return Decoding([], [], [])
        most = min(self.draft_tokens, self.rows.longest_step() - 1)
        drafts = [state.draft(most) for state in states]
        length = draft_length(self._step_times, drafts, [state.acceptance for state in states], most)
        pairs = zip(states, drafts, strict=True)
        return Decoding(states, drafts, [[state.last_token, *draft.token_ids[:length]] for state, draft in pairs])

    def _decode(self, decoding: Decoding) -> Scored:
        """Decode, and nothing else."""
        if not decoding.states:
            return []
        clock = time.perf_counter()
        try:
            logits_BSV = self.rows.cache.append_scored(self._embed_decoded(decoding), decoding.lengths)
        except R1VError as error:
            return [(state, error) for state in decoding.states]
        rows, seq = logits_BSV.shape[:2]
        self._step_times.record(rows, seq, (time.perf_counter() - clock) * 1000)
        return self._decoded(decoding, logits_BSV)

    def _decode_and_prefill(self, decoding: Decoding, pieces: Sequence[Piece]) -> Scored:
        """Decode, and prefill pieces of prompts in the same run, whose rows lie behind: both take little longer than
        one. A piece that cannot be embedded fails alone."""
        failed: Scored = []
        chunks: list[tuple[Piece, np.ndarray]] = []
        for piece in pieces:
            try:
                chunks.append((piece, self._embed_piece(piece)[0]))
            except R1VError as error:
                failed.append((piece.state, error))
        if not chunks:
            return [*failed, *self._decode(decoding)]
        self.rows.place_next(*(piece.state.row for piece, _ in chunks))
        try:
            logits_RPV = self._score(decoding, [chunk_SE for _, chunk_SE in chunks])
        except R1VError as error:
            states = [*decoding.states, *(piece.state for piece, _ in chunks)]
            return [*failed, *((state, error) for state in states)]
        rows = len(decoding.states)
        decoded = self._decoded(decoding, logits_RPV[:rows]) if rows else []
        of_chunks = zip(chunks, logits_RPV[rows:], strict=True)
        prefilled = [scores for (piece, _), logits_PV in of_chunks for scores in self._prefilled(piece, logits_PV[-1])]
        return [*failed, *decoded, *prefilled]

    def _score(self, decoding: Decoding, chunks: Sequence[np.ndarray]) -> np.ndarray:
        """Put what is decoded, and chunks [S, E] of the rows behind, into the cache; logits [R, P, V] after each token
        that is decoded, and after the last one of each chunk."""
        embeds_BSE = self._embed_decoded(decoding)
        decoded = [embeds_SE[:new] for embeds_SE, new in zip(embeds_BSE, decoding.lengths, strict=True)]
        parts_SE = [*decoded, *chunks]
        new_R = np.array([len(part_SE) for part_SE in parts_SE])
        index_RP = np.minimum(np.arange(embeds_BSE.shape[1]), new_R[:, None] - 1)
        index_RP[len(decoding.states) :] = new_R[len(decoding.states) :, None] - 1
        return self.rows.cache.append_ragged(pad_right(parts_SE), new_R, index_RP)

    def _embed_decoded(self, decoding: Decoding) -> np.ndarray:
        """Embeddings [B, S, E] of what is decoded, padded on the right; S is 1 where nothing is."""
        if not decoding.states:
            return np.zeros((0, 1, self.engine.sizes.hidden), dtype=np.float32)
        ids_BS = np.zeros((len(decoding.states), int(decoding.lengths.max())), dtype=np.int64)
        for ids_S, row in zip(ids_BS, decoding.token_ids, strict=True):
            ids_S[: len(row)] = row
        return embed_chosen(self.engine, ids_BS)

    def _decoded(self, decoding: Decoding, logits_BPV: np.ndarray) -> Scored:
        """Count what was decoded as being in the rows; what each request takes, by logits [B, P, V]."""
        self.counters.rows_per_step[len(decoding.states)] += 1
        scored: Scored = []
        for state, draft, ids, logits_PV in zip(*decoding, logits_BPV, strict=True):
            state.row.tokens.append(ids[0])
            scored.append((state, Scores(logits_PV[: len(ids)], draft)))
        return scored

    def _prefill(self, piece: Piece) -> Scored:
        """Prefill a piece of a prompt in the row where it is, and nothing else."""
        new_1 = np.array([piece.tokens])
        try:
            logits_V = self.rows.cache.append(self._embed_piece(piece), new_1, piece.state.row.index)[0]
        except R1VError as error:
            return [(piece.state, error)]
        return self._prefilled(piece, logits_V)

    def _prefilled(self, piece: Piece, logits_V: np.ndarray) -> Scored:
        """Count a piece as being in the row, and begin to decode the request where it was the last one."""
        state = piece.state
        state.row.tokens.take(state.tokens, piece.stop)
        state.computed += piece.tokens
        if piece.stop < len(state.tokens):
            return []
        self._start(state)
        return [(state, Scores(logits_V[None], Draft()))]

    def _embed_piece(self, piece: Piece) -> np.ndarray:
        with piece.state.stream.timings.measure("embed"):
            embeds_1SE = self._embed(*piece)
        require_finite(embeds_1SE, "embed")
        return embeds_1SE

    def _embed(self, state: RowState, start: int, stop: int) -> np.ndarray:
        """Embeddings [1, S, E] of tokens start ... stop - 1, with the images that the prompt has among them."""
        ids_1S = np.frombuffer(state.tokens.ids, dtype=np.int64)[None, start:stop]
        answer = min(max(start, state.prompt_tokens), stop)
        parts = []
        if start < answer:
            images_NE = self._image_rows(state, start, answer)
            parts.append(self.engine.embed(ids_1S[:, : answer - start], images_NE))
        if answer < stop:
            parts.append(embed_chosen(self.engine, ids_1S[:, answer - start :]))
        return np.concatenate(parts, axis=1)

    def _image_rows(self, state: RowState, start: int, stop: int) -> np.ndarray:
        """Embeddings [N, E] of the image tokens among the prompt's tokens start ... stop - 1."""
        is_image_S = np.frombuffer(state.tokens.ids, dtype=np.int64) == self.image_token_id
        before, until = int(is_image_S[:start].sum()), int(is_image_S[:stop].sum())
        none_NE = np.zeros((0, self.engine.sizes.hidden), dtype=np.float32)
        if before == until:
            return none_NE
        rows_NE: np.ndarray = np.concatenate([none_NE, *state.images])[before:until]
        return rows_NE

    def _start(self, state: RowState) -> None:
        """Let a request whose prompt is in the cache be decoded."""
        state.prefilled = True
        self.rows.start(state.row)
        if state.stream.token_ids:
            return  # It gave up its row, and was counted the first time.
        tokens, counters = len(state.tokens), self.counters
        # What it computed in a row that it gave up is computed once more, and is not reused.
        reused = state.stream.reused_tokens = max(0, tokens - state.computed)
        counters.prompt_tokens += tokens
        counters.reused_tokens += reused
        counters.prefix_hits += reused > 0
        counters.prefix_misses += reused == 0
        message = "request %(request)d: prompt of %(tokens)s, %(reused_tokens)d of them from the cache"
        fields = {"request": state.stream.index, "tokens": Count(tokens, "token"), "reused_tokens": reused}
        log_event(_LOG, logging.DEBUG, message, **fields)
