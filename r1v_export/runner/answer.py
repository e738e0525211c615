"""What a generation yields: events while it runs, an answer at its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from r1v_export.count import Count
from r1v_export.generation import FinishReason, Sampling
from r1v_export.log_event import log_event
from r1v_export.runner.guided import AnswerGuide
from r1v_export.runner.reasoning import TAGS, Piece, ReasoningSplitter, Unsplit
from r1v_export.runner.sampling import TokenLogprobs
from r1v_export.runner.streaming import Detokenizer, StopStrings

_LOG = logging.getLogger(__name__)


@dataclass
class Timings:
    """Wall-clock time by stage, in milliseconds. Requests that are answered
    together share the time of each step, as `prefill_ms` until their first token, then as `decode_ms`."""

    queue_ms: float = 0.0
    """Waiting for a row, where requests are submitted to a batching runner."""
    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    projector_ms: float = 0.0
    embed_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    """All steps after prefill, embedding and choosing the tokens included."""
    decode_steps: int = 0

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the duration of a block to `{stage}_ms`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            name = f"{stage}_ms"
            setattr(self, name, getattr(self, name) + (time.perf_counter() - started) * 1000)

    @property
    def first_token_ms(self) -> float:
        """From image and text to the first token, waiting included."""
        return self.queue_ms + self.preprocess_ms + self.vision_ms + self.projector_ms + self.embed_ms + self.prefill_ms

    @property
    def decode_steps_per_s(self) -> float:
        """Tokens per second and sequence, after the first."""
        return self.decode_steps / self.decode_ms * 1000 if self.decode_ms else 0.0


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    Attributes:
        reasoning: text inside `<think>`, "" where thinking was off.
        text: the answer proper; "" if the reasoning was never closed.
        reasoning_complete: false if the answer ended inside the reasoning.
        token_ids: all generated tokens, a stop token included.
        finish_reason: "stop" (a stop token or string), "length" (`max_new_tokens`), "context" (no
            position of the model, or slot of the cache's budget, is left), "cancelled" or "deadline".
        prompt_tokens: tokens of the prompt, image tokens included.
        reused_tokens: of these, taken from the cache of an earlier turn or of another request.
        reasoning_tokens: of `token_ids`, those that made the reasoning and its end tag.
        logprobs: of each token, where the sampling asks for them.
    """

    reasoning: str
    text: str
    reasoning_complete: bool
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    reused_tokens: int
    timings: Timings
    reasoning_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()


CANCELLED_BEFORE_START = Answer("", "", False, (), "cancelled", 0, 0, Timings())
"""The answer to a request that was cancelled before its prompt was ready."""


@dataclass(frozen=True)
class TokenEvent:
    """One step of one request's answer.

    Attributes:
        request: index of the request.
        token_id: the new token; None in a last event that brings none, as that of a cancelled answer.
        reasoning, text: what became certain of reasoning and answer; each may be "".
        answer: the whole answer, with the request's last event only.
        logprobs: of the token, where the sampling asks for them.
    """

    request: int
    token_id: int | None
    reasoning: str
    text: str
    answer: Answer | None = None
    logprobs: TokenLogprobs | None = None


@dataclass
class AnswerText:
    """One answer's way from tokens to reasoning and text.

    Args:
        token_bytes: token id -> its bytes.
        sampling: for its stop strings.
        thinking: the prompt has opened reasoning; None takes the text as it comes, not split at all.
        tags: what opens and ends reasoning.
    """

    token_bytes: Callable[[int], bytes]
    sampling: Sampling
    thinking: bool | None
    tags: tuple[str, str] = TAGS
    reasoning: str = field(default="", init=False)
    text: str = field(default="", init=False)

    def __post_init__(self) -> None:
        everywhere = self.sampling.stop_in_reasoning or self.thinking is None
        self._detokenizer = Detokenizer(self.token_bytes)
        self._stop_strings = StopStrings(self.sampling.stop if everywhere else ())
        stops = () if everywhere else self.sampling.stop
        self._splitter = Unsplit() if self.thinking is None else ReasoningSplitter(self.thinking, stops, self.tags)

    @property
    def stopped(self) -> bool:
        """A stop string came up."""
        return self._stop_strings.stopped or self._splitter.stopped

    @property
    def in_reasoning(self) -> bool:
        """Whether the next text belongs to the reasoning."""
        return self._splitter.in_reasoning

    def push(self, token_id: int) -> Piece:
        """The reasoning and text that a token makes certain."""
        return self._keep(self._splitter.push(self._stop_strings.push(self._detokenizer.push(token_id))))

    def flush(self) -> Piece:
        """The rest, at the end of the answer."""
        rest = self._stop_strings.push(self._detokenizer.flush()) + self._stop_strings.flush()
        certain, last = self._splitter.push(rest), self._splitter.flush()
        return self._keep(Piece(certain.reasoning + last.reasoning, certain.answer + last.answer))

    def _keep(self, piece: Piece) -> Piece:
        self.reasoning += piece.reasoning
        self.text += piece.answer
        return piece


class AnswerStream:
    """One answer while it is made: tokens in, events out.

    Args:
        index: of the request, for its events.
        stop_ids: tokens that end the answer and are no text.
        max_new_tokens: what was asked for; an answer whose length ends it earlier has filled the model's context.
        prompt_tokens, reused_tokens: as in `Answer`.
        timings: of the request; whoever runs the decoder goes on measuring into it.
    """

    def __init__(
        self,
        index: int,
        text: AnswerText,
        stop_ids: frozenset[int],
        max_new_tokens: int,
        timings: Timings,
        prompt_tokens: int,
        reused_tokens: int = 0,
    ) -> None:
        self.index, self.text, self.stop_ids, self.timings = index, text, stop_ids, timings
        self.guide: AnswerGuide | None = None
        self.max_new_tokens = max_new_tokens
        self.prompt_tokens, self.reused_tokens = prompt_tokens, reused_tokens
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.reasoning_tokens = 0
        self.finish_reason: FinishReason | None = None

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    def push(
        self, token_id: int | None, finish_reason: FinishReason | None, logprobs: TokenLogprobs | None = None
    ) -> TokenEvent:
        """The event of the next token, or of an end that comes without one. A stop string ends the answer too.

        Args:
            finish_reason: of the decoder, which knows one limit only and calls it "length".
            logprobs: of the token.
        """
        reasoning = text = ""
        if logprobs is not None:
            self.logprobs.append(logprobs)
        if token_id is not None:
            self.reasoning_tokens += self.text.in_reasoning
            self.token_ids.append(token_id)
            if token_id not in self.stop_ids:
                reasoning, text = self.text.push(token_id)
        if finish_reason == "length" and len(self.token_ids) < self.max_new_tokens:
            finish_reason = "context"
        self.finish_reason = "stop" if self.text.stopped else finish_reason
        if self.finish_reason is None:
            return TokenEvent(self.index, token_id, reasoning, text, logprobs=logprobs)
        last = self.text.flush()
        answer = self._answer(self.finish_reason)
        return TokenEvent(self.index, token_id, reasoning + last.reasoning, text + last.answer, answer, logprobs)

    def _answer(self, finish_reason: FinishReason) -> Answer:
        self.timings.decode_steps = max(len(self.token_ids) - 1, 0)
        message = "request %(request)d: %(tokens)s, ended by %(finish_reason)s"
        tokens = Count(len(self.token_ids), "token")
        log_event(_LOG, logging.INFO, message, request=self.index, tokens=tokens, finish_reason=finish_reason)
        times = {stage: round(value, 3) for stage, value in asdict(self.timings).items()}
        message = "request %(request)d: " + ", ".join(f"{stage} %({stage})g" for stage in times)
        log_event(_LOG, logging.DEBUG, message, request=self.index, **times)
        return Answer(
            reasoning=self.text.reasoning,
            text=self.text.text,
            reasoning_complete=not self.text.in_reasoning,
            token_ids=tuple(self.token_ids),
            finish_reason=finish_reason,
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.reused_tokens,
            timings=self.timings,
            reasoning_tokens=self.reasoning_tokens,
            logprobs=tuple(self.logprobs),
        )
