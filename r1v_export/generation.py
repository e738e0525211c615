"""From a prompt to its tokens, where a library does the decoding: what is asked of it, and what it gives back.

`contract.Engine` is the other way: its decoder is stepped by our own loop, token by token.
Shape letters: N tokens of an image, E hidden size.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from r1v_export.errors import UsageError

FinishReason = Literal["stop", "length", "context", "cancelled", "deadline"]
"""Why an answer ended: a stop token or string, `max_new_tokens`, no position of the model or slot of the cache left,
the caller, or its deadline.

The OpenAI API calls both `length` and `context` "length".
"""


MOST_PENALTY, MOST_BIAS, MOST_LOGPROBS = 2, 100, 20
"""The OpenAI API's limits."""


@dataclass(frozen=True)
class Guide:
    """A form that an answer keeps: JSON of a schema, or a regular expression, as text."""

    kind: Literal["json_schema", "regex"]
    text: str

    @classmethod
    def json_object(cls) -> Guide:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Guide:
        """JSON of a JSON Schema."""
        return cls("json_schema", json.dumps(schema))

    @classmethod
    def regex(cls, pattern: str) -> Guide:
        """Text that a regular expression matches as a whole; of Rust's kind, without look-around."""
        return cls("regex", pattern)


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen and when it ends.

    Args:
        max_new_tokens: at most this many tokens are generated.
        temperature: divides the logits; 0 picks the likeliest token (greedy), and top_p, top_k and seed do nothing.
        top_p: draw from the smallest set of likeliest tokens that holds this much probability; 1 is off.
        top_k: draw from this many likeliest tokens (and those equal to the last); 0 is off.
        min_p: tokens less likely than this share of the likeliest one's probability are not drawn; 0 is off.
        repetition_penalty: divides positive and multiplies negative logits of tokens already in prompt or answer.
        presence_penalty: taken off the logits of tokens already in the answer.
        frequency_penalty: taken off the same for each time that they are in the answer.
        logit_bias: token id -> what is added to its logit, before all else.
        seed: of this answer's own random stream; None takes fresh entropy.
        stop: the answer ends before the first of these strings; reasoning, and white space behind it, is not searched.
        stop_in_reasoning: search all generated text for `stop`, tags and white space included.
        ignore_eos: the model's stop tokens end no answer: for load generators, whose answers all have one length.
        max_reasoning_tokens: the reasoning is ended, by its end tag, after this many tokens; None is off.
        guide: the form of the answer, from where the reasoning has ended.
        logprobs: report the chosen tokens' log probabilities, and those of this many likeliest ones; None reports none.
            They are the model's own, before anything of the above.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = 0
    stop: tuple[str, ...] = ()
    stop_in_reasoning: bool = False
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    max_reasoning_tokens: int | None = None
    logprobs: int | None = None
    guide: Guide | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "max_new_tokens", "at least 1", self.max_new_tokens)
        _require(0 <= self.temperature < float("inf"), "temperature", "0 (greedy) or more", self.temperature)
        _require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _require(self.top_k >= 0, "top_k", "0 (off) or more", self.top_k)
        _require(0 <= self.min_p <= 1, "min_p", "0 (off) to 1", self.min_p)
        _require(0 < self.repetition_penalty < float("inf"), "repetition_penalty", "above 0", self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            _require(abs(getattr(self, name)) <= MOST_PENALTY, name, "-2 to 2", getattr(self, name))
        for token_id, bias in self.logit_bias.items():
            _require(token_id >= 0 and abs(bias) <= MOST_BIAS, "logit_bias", "ids -> -100 to 100", {token_id: bias})
        most = self.max_reasoning_tokens
        _require(most is None or most >= 0, "max_reasoning_tokens", "0 or more", most)
        _require(self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS, "logprobs", "0 to 20", self.logprobs)
        _require(not (self.ignore_eos and self.guide), "ignore_eos", "false, for a form ends the answer", True)
        _require(self.seed is None or self.seed >= 0, "seed", "0 or more", self.seed)
        if not all(self.stop):
            raise UsageError(
                "A stop text is empty.",
                where="sampling.stop",
                expected="at least one character",
                found="an empty text",
                fix="give the text that ends the answer, or omit it",
            )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    def __str__(self) -> str:
        """In words, as `run` prints it: `temperature 0.6, top_p 0.95, seed 0`; only what has an effect."""
        drawn: list[tuple[str, float | None]] = [("temperature", self.temperature), ("top_p", self.top_p)]
        drawn += [("top_k", self.top_k), ("min_p", self.min_p), ("seed", self.seed)]
        off = {"top_p": 1, "top_k": 0, "min_p": 0}
        fields = [] if self.greedy else [(name, value) for name, value in drawn if off.get(name) != value]
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "max_reasoning_tokens"):
            if (value := getattr(self, name)) != getattr(Sampling, name):
                fields.append((name, value))
        words = (f"{name} {value if value is not None else 'random'}" for name, value in fields)
        return ", ".join(["greedy"] * self.greedy + [*words, f"max_new_tokens {self.max_new_tokens}"])


def require_unused(sampling: Sampling, names: Iterable[str], library: str) -> None:
    """Check that settings are at their defaults, which a library has no equal of.

    Raises:
        UsageError: one is not.
    """
    default = Sampling()
    for name in names:
        if (found := getattr(sampling, name)) != getattr(default, name):
            raise UsageError(
                f"{library} does not support this sampling setting as it is meant here.",
                where=f"sampling.{name}",
                expected=getattr(default, name),
                found=found,
                fix="omit it, or use an engine of the bundle",
            )


def _require(holds: bool, field: str, expected: str, found: object) -> None:
    if not holds:
        raise UsageError(
            f"{field} is out of range.",
            where=f"sampling.{field}",
            expected=expected,
            found=found,
            fix="pass a value in this range, or omit it",
        )


@dataclass(frozen=True)
class EncodedImage:
    """One image's image embeddings [N, E] float32, and what identifies it: a digest of its pixels, say."""

    embeds: np.ndarray
    digest: bytes

    @classmethod
    def of(cls, pixel_values: np.ndarray, embeds: np.ndarray) -> EncodedImage:
        """Make an encoded image, whose digest is the SHA-256 of its pixels.

        Args:
            pixel_values: its tiles, as they went into the vision graph.
            embeds: what came out of the projector, [tiles, tokens, E] or [N, E].
        """
        digest = hashlib.sha256(np.ascontiguousarray(pixel_values).tobytes()).digest()
        return cls(embeds.reshape(-1, embeds.shape[-1]), digest)


@dataclass(frozen=True)
class Generated:
    """What came since the last time, nothing perhaps. With the last of it, and only then, why it is the last.

    The token that stopped is among the tokens.
    """

    token_ids: list[int]
    finish_reason: FinishReason | None = None


class Generation(Protocol):
    """A request that is being answered. Iterating waits for what comes next, a moment at most where the library lets it
    be so, and ends after the last. Errors of the library are GraphErrors."""

    def __iter__(self) -> Iterator[Generated]: ...

    def __next__(self) -> Generated: ...

    def close(self) -> None:
        """Free what the request holds, whether it is finished or not. May be called again."""


class Generator(Protocol):
    """A language model with a loop of its own, which batches the requests that are open at a time."""

    name: str
    max_tokens: int
    """Tokens of a prompt and its answer, at most."""

    def generate(
        self,
        token_ids: Sequence[int],
        images: Sequence[EncodedImage],
        sampling: Sampling,
        stop_ids: frozenset[int],
        cancel: threading.Event,
    ) -> Generation:
        """Begin to answer a prompt.

        Args:
            token_ids: the prompt, an image token for every row of an image.
            sampling: `stop` is ignored: the caller applies it to the text.
            stop_ids: tokens that end the answer.
            cancel: once set, from any thread, the request is given up.

        Raises:
            InputError: the prompt does not fit.
            UsageError: tokens cannot be chosen like that here.
            GraphError: the library refuses the request.
        """
        ...
