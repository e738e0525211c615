"""A request that an engine answers: its row of the cache, its sampler, its answer so far.

Shape letter: V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1v_export.errors import R1VError
from r1v_export.generation import FinishReason
from r1v_export.runner.answer import AnswerStream, TokenEvent
from r1v_export.runner.batching.batch import RequestState
from r1v_export.runner.batching.cache_rows import CacheRow
from r1v_export.runner.batching.speculation import Acceptance, Draft, draft_of
from r1v_export.runner.encoded_prompt import EncodedPrompt, TokenSequence
from r1v_export.runner.sampling import Sampler, TokenLogprobs


class Choice(NamedTuple):
    """A token that was chosen for a request."""

    token_id: int
    logprobs: TokenLogprobs | None


class RowState(RequestState):
    """A request that has a row, or waits for one again.

    Args:
        row: its row, which may hold the beginning of its prompt already.
        tokens: its prompt, to which `recall` adds its answer.
        max_new_tokens: as far as the model has positions, and the cache slots.
        end_tag: tokens that end reasoning.
    """

    def __init__(
        self,
        stream: AnswerStream,
        prompt: EncodedPrompt,
        tokens: TokenSequence,
        row: CacheRow,
        sampler: Sampler,
        max_new_tokens: int,
        end_tag: Sequence[int],
    ) -> None:
        super().__init__(stream)
        self._end_tag, self._forced = end_tag, deque[int]()
        self.tokens, self.row, self.sampler, self.max_new_tokens = tokens, row, sampler, max_new_tokens
        self.images: Sequence[np.ndarray] = [image.embeds for image in prompt.images]
        self.prompt_tokens = len(tokens)
        self.prefilled = False
        """Whether `tokens` are in the cache, at most without the last, so that the request is decoded."""
        self.computed = 0
        """Prompt tokens that went through the decoder for this request."""
        self.acceptance = Acceptance()
        self._embed_ms = stream.timings.embed_ms

    @property
    def most_tokens(self) -> int:
        """Tokens of its prompt and its longest answer."""
        return self.prompt_tokens + self.max_new_tokens

    @property
    def last_token(self) -> int:
        """Of its answer, or of its prompt where that has none: what goes into the cache next."""
        answer = self.stream.token_ids
        return answer[-1] if answer else self.tokens.ids[-1]

    def recall(self) -> None:
        """Let `tokens` be all that its row has to hold, prompt and answer, for it to be decoded further."""
        for token_id in self.stream.token_ids[len(self.tokens) - self.prompt_tokens :]:
            self.tokens.append(token_id)

    def draft(self, most: int) -> Draft:
        """What may come next: at most so many tokens, and as many as the answer has room for."""
        room = self.max_new_tokens - len(self.stream.token_ids) - 1
        return draft_of(self.row.tokens.ids, self.last_token, min(most, room))

    def choose(self, logits_V: np.ndarray) -> Choice | R1VError:
        """The next token, by the logits [V] or, where its reasoning is to end now, of the end tag; or what is wrong."""
        limit, stream = self.sampler.sampling.max_reasoning_tokens, self.stream
        if limit is not None and not self._forced and stream.text.in_reasoning and stream.reasoning_tokens == limit:
            self._forced.extend(self._end_tag)
        guide = None if stream.text.in_reasoning else stream.guide
        try:
            scores_V = logits_V if guide is None else guide.allowed(logits_V)
            token_id = self.sampler.next(scores_V, self._forced.popleft() if self._forced else None)
            if guide is not None:
                guide.take(token_id)
        except R1VError as error:
            return error
        wanted = self.sampler.sampling.logprobs is not None
        return Choice(token_id, self.sampler.logprobs(logits_V, token_id) if wanted else None)

    def take(self, choice: Choice) -> TokenEvent:
        """Add the next token to the answer."""
        token_id = choice.token_id
        reason: FinishReason | None = None
        if token_id in self.stream.stop_ids:
            reason = "stop"
        elif len(self.stream.token_ids) + 1 >= self.max_new_tokens:
            reason = "length"
        return self.stream.push(token_id, reason, choice.logprobs)

    def add_time(self, step_ms: float) -> None:
        """Count a step's time, of which embedding the prompt is a stage of its own."""
        timings = self.stream.timings
        step_ms -= timings.embed_ms - self._embed_ms
        self._embed_ms = timings.embed_ms
        if self.stream.token_ids:
            timings.decode_ms += step_ms
        else:
            timings.prefill_ms += step_ms
