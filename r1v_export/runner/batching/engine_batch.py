"""Continuous batching over an engine: prompts in chunks, each on its own row, between steps that decode all others, or
in them where the decoder takes rows of different lengths.

Shape letters: B rows, S tokens, P of them with logits, N image tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from r1v_export.contract import Engine
from r1v_export.count import Count
from r1v_export.errors import R1VError
from r1v_export.generation import Sampling
from r1v_export.log_event import log_event
from r1v_export.runner.answer import AnswerStream, TokenEvent
from r1v_export.runner.batching.batch import Batch, CacheUsage
from r1v_export.runner.batching.cache_rows import CacheRows
from r1v_export.runner.batching.row_state import RowState
from r1v_export.runner.batching.speculation import Draft, StepTimes, draft_length
from r1v_export.runner.encoded_prompt import EncodedPrompt, TokenSequence
from r1v_export.runner.finite import require_finite
from r1v_export.runner.kv_cache import CAPACITY_STEP, PREFILL_CHUNK, embed_chosen, new_token_budget, plan_capacity
from r1v_export.runner.sampling import Sampler

_LOG = logging.getLogger(__name__)

HEADROOM = CAPACITY_STEP
"""Slots behind its tokens that a row is given, so that it does not have to give way at once."""

PROMPT_TOKENS_WITH_OTHERS = 96
"""Prompt tokens in a step that decodes as well, at most. With 160 the others wait 1.7 times as long for their next
token (p95), and 16 clients get fewer tokens a second; with 64 and 80 they get fewer, too (two cores, 0.5B)."""


class Scores(NamedTuple):
    """What a step computed for a request.

    Attributes:
        logits: [P, V], after its last token, and after each token of the draft that was checked.
        draft: of its next tokens; more of it than was checked may be there.
    """

    logits: np.ndarray
    draft: Draft


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
    in the cache, and more where drafts of them are right, or it prefills tokens of one prompt, or does both where the
    decoder is `CacheLimits.ragged`. So every token is handed out as soon as it is known.

    Rows take what is used of the cache, and not what answers may come to: that may be the model's whole context. Where
    a row needs more than the budget has left, the request that was admitted last gives up its row. It gets one again
    before any new request does, and its prompt and answer so far are prefilled there. The oldest request never waits,
    so each one ends.

    Args:
        engine: the reference or any built target.
        image_token_id: stands in prompts for a row of an image.
        rows: of the engine's cache.
        prefill_chunk: prompt tokens of a step, and of all steps between two that decode, at most: bounds the memory of
            attention, and the wait of all others.
        end_tag: tokens that end reasoning, for `Sampling.max_reasoning_tokens`.
        draft_tokens: of a request that a step checks, at most; 0 decodes token by token.
    """

    def __init__(
        self,
        engine: Engine,
        image_token_id: int,
        rows: CacheRows,
        prefill_chunk: int = PREFILL_CHUNK,
        end_tag: Sequence[int] = (),
        draft_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.end_tag, self.draft_tokens, self._step_times = end_tag, draft_tokens, StepTimes()
        self.engine, self.image_token_id, self.rows, self.prefill_chunk = engine, image_token_id, rows, prefill_chunk
        self._holding: list[RowState] = []
        """Requests with a row, the oldest first."""
        self._preempted: deque[RowState] = deque()
        """Requests that gave up their row, the oldest first; all are younger than those that have one."""
        self._shortest_next = False
        self._prefill_room = prefill_chunk
        """Prompt tokens that may be prefilled before others are decoded."""

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
        prompt, decodes = self._next_prompt(), any(state.prefilled for state in self._holding)
        if prompt is None:
            return self._decode() if decodes else []
        if not decodes:
            return self._prefill(prompt)
        if self.rows.ragged:
            return self._decode_with(prompt)
        return self._decode() if self._chunk(prompt) > self._prefill_room else self._prefill(prompt)

    def _decode_with(self, prompt: RowState) -> Scored:
        """Decode, and prefill the next tokens of a prompt in the same run: both take little longer than one."""
        start = len(prompt.row.tokens)
        stop = start + min(PROMPT_TOKENS_WITH_OTHERS, self._chunk(prompt))
        self._shortest_next = not self._shortest_next
        try:
            chunk_SE = self._embed_chunk(prompt, start, stop)[0]
        except R1VError as error:
            return [(prompt, error)]
        self.rows.place_next(prompt.row)
        decoded, logits_V = self._decode_rows(chunk_SE)
        if isinstance(logits_V, R1VError):
            return [*decoded, (prompt, logits_V)]
        return [*decoded, *self._prefilled(prompt, start, stop, logits_V)]

    def _decode(self) -> Scored:
        return self._decode_rows(None)[0]

    def _decode_rows(self, chunk_SE: np.ndarray | None) -> tuple[Scored, np.ndarray | R1VError]:
        """Decode every request whose prompt is in the cache.

        Args:
            chunk_SE: tokens of a prompt, whose row lies behind theirs; None for none.

        Returns:
            What they take, and the logits [V] after that chunk, if there is one; or what failed.
        """
        decoding = (state for state in self._holding if state.prefilled)
        states = sorted(decoding, key=lambda state: state.row.index)
        self._prefill_room = self.prefill_chunk
        self.counters.rows_per_step[len(states)] += 1
        most = min(self.draft_tokens, self.rows.longest_step() - 1)
        drafts = [state.draft(most) for state in states]
        length = draft_length(self._step_times, drafts, [state.acceptance for state in states], most)
        last = [state.last_token for state in states]
        checked = [[last, *draft.token_ids[:length]] for last, draft in zip(last, drafts, strict=True)]
        try:
            logits = self._score(checked, chunk_SE)
        except R1VError as error:
            return [(state, error) for state in states], error
        for state, token_id in zip(states, last, strict=True):
            state.row.tokens.append(token_id)
        scores = (Scores(logits_PV, draft) for logits_PV, draft in zip(logits, drafts, strict=False))
        return [*zip(states, scores, strict=True)], logits[-1][-1]

    def _score(self, token_ids: Sequence[Sequence[int]], chunk_SE: np.ndarray | None) -> list[np.ndarray]:
        """Put tokens of each row that is decoded into the cache; for each row logits [P, V] after each of them, and, as
        the last ones, [1, V] after the chunk of the row behind them, if there is one."""
        clock = time.perf_counter()
        new_B = np.array([len(row) for row in token_ids], dtype=np.int64)
        rows, seq = len(new_B), int(new_B.max())
        ids_BS = np.zeros((rows, seq), dtype=np.int64)
        for ids_S, row in zip(ids_BS, token_ids, strict=True):
            ids_S[: len(row)] = row
        embeds_BSE = embed_chosen(self.engine, ids_BS)
        if chunk_SE is not None:
            return self._score_with(embeds_BSE, new_B, chunk_SE)
        logits_BSV = self.rows.cache.append_scored(embeds_BSE, new_B)
        self._step_times.record(rows, seq, (time.perf_counter() - clock) * 1000)
        return [logits_SV[:new] for logits_SV, new in zip(logits_BSV, new_B, strict=True)]

    def _score_with(self, embeds_BSE: np.ndarray, new_B: np.ndarray, chunk_SE: np.ndarray) -> list[np.ndarray]:
        rows, seq, hidden = embeds_BSE.shape
        together_RSE = np.zeros((rows + 1, max(seq, len(chunk_SE)), hidden), dtype=np.float32)
        together_RSE[:rows, :seq], together_RSE[rows, : len(chunk_SE)] = embeds_BSE, chunk_SE
        index_RP = np.full((rows + 1, seq), len(chunk_SE) - 1)
        index_RP[:rows] = np.minimum(np.arange(seq), new_B[:, None] - 1)
        logits_RPV = self.rows.cache.append_ragged(together_RSE, np.append(new_B, len(chunk_SE)), index_RP)
        return [logits_PV[:new] for logits_PV, new in zip(logits_RPV, [*new_B, 1], strict=True)]

    def _next_prompt(self) -> RowState | None:
        """The request whose prompt goes on; None where there is none.

        The oldest prompt and the one with the fewest tokens left, in turns: neither do short prompts wait for a long
        one, nor does a long one wait for ever, nor do prompts that are alike all wait for the last of them.
        """
        prefilling = [state for state in self._holding if not state.prefilled]
        if not prefilling:
            return None
        if self._shortest_next:
            prefilling.sort(key=lambda state: len(state.tokens) - len(state.row.tokens))
        state = prefilling[0]
        self.rows.reuse(state.row, state.tokens)
        return state

    def _chunk(self, state: RowState) -> int:
        """How many of a request's tokens are prefilled next."""
        return min(self.prefill_chunk, len(state.tokens) - len(state.row.tokens))

    def _prefill(self, state: RowState) -> Scored:
        start = len(state.row.tokens)
        stop = start + self._chunk(state)
        self._prefill_room -= stop - start
        self._shortest_next = not self._shortest_next
        try:
            embeds_1SE = self._embed_chunk(state, start, stop)
            logits_V = self.rows.cache.append(embeds_1SE, np.array([stop - start]), state.row.index)[0]
        except R1VError as error:
            return [(state, error)]
        return self._prefilled(state, start, stop, logits_V)

    def _prefilled(self, state: RowState, start: int, stop: int, logits_V: np.ndarray) -> Scored:
        """Count prompt tokens start ... stop - 1 as being in the row, and begin to decode it behind the last ones."""
        state.row.tokens.take(state.tokens, stop)
        state.computed += stop - start
        if stop < len(state.tokens):
            return []
        self._start(state)
        return [(state, Scores(logits_V[None], Draft()))]

    def _embed_chunk(self, state: RowState, start: int, stop: int) -> np.ndarray:
        with state.stream.timings.measure("embed"):
            embeds_1SE = self._embed(state, start, stop)
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
