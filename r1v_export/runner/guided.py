"""Answers that keep a form: JSON of a schema, or a regular expression, by way of llguidance.

At each token of the answer llguidance says which tokens may come next; all others are ruled out before one is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from r1v_export.errors import CapabilityError, InputError
from r1v_export.generation import Guide
from r1v_export.processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_REGEX_ERROR = re.compile(
    r"regex parse error:\n    (?P<pattern>.*)\n {4}(?P<space> *)\^+\n(?:.*\n)*?error: (?P<cause>.*)"
)
"""How Rust's regex library shows an error: the pattern, marks below it, and the cause."""
_PLACE = re.compile(r"^at \d+\(\d+\): ")
"""In the grammar that llguidance makes of a form, which no user has written."""

_FIXES = {
    "json_schema": "correct the schema, or omit what is not supported",
    "regex": "correct the pattern: its syntax is that of Rust's regex, without look-around and backreferences",
}


class AnswerGuide:
    """One answer's way through its form."""

    def __init__(self, matcher: LLMatcher, stop_ids: Collection[int]) -> None:
        self._matcher, self._stop_ids = matcher, stop_ids

    def allowed(self, logits_V: np.ndarray) -> np.ndarray:
        """The logits [vocab], with -inf for each token that may not come next.

        Raises:
            InputError: the form has become too complex to follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        may_come = np.unpackbits(bits, bitorder="little")[: logits_V.size].astype(bool)
        allowed_V = np.full_like(logits_V, -np.inf)
        allowed_V[: may_come.size][may_come] = logits_V[: may_come.size][may_come]
        return allowed_V

    def take(self, token_id: int) -> None:
        """Follow the answer by a token.

        Raises:
            InputError: the form has become too complex to follow.
        """
        if token_id not in self._stop_ids:
            self._matcher.consume_token(token_id)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InputError(
                "The answer cannot be guided.",
                where="sampling.guide",
                found=_in_one_line(self._matcher.get_error()),
                fix="simplify it",
            )


class GuideCompiler:
    """Makes guides for the tokens of one model.

    Args:
        stop_ids: tokens that end an answer; they may come where the form is complete.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int]) -> None:
        self._tokenizer, self._stop_ids = tokenizer, stop_ids

    def compile(self, guide: Guide) -> AnswerGuide:
        """A guide for one answer.

        Raises:
            InputError: no valid JSON Schema or regular expression, or of a kind that llguidance does not take.
            CapabilityError: llguidance is not installed.
        """
        tokens = self._tokens
        grammar = _grammar(guide)
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(tokens, grammar, log_level=0)
        except ValueError as error:
            raise _unusable(guide, str(error)) from error
        if matcher.is_error():
            raise _unusable(guide, matcher.get_error())
        return AnswerGuide(matcher, self._stop_ids)

    @cached_property
    def _tokens(self) -> LLTokenizer:
        _require_llguidance()
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer, self._stop_ids)), eos_token=[*self._stop_ids])


class _Vocabulary:
    """What llguidance asks of a tokenizer. Added tokens are special: they never stand for text of the form."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int]) -> None:
        added = {token.id: name.encode() for name, token in tokenizer.added_tokens.items()}
        self.tokens = [added.get(id_) or tokenizer.token_bytes(id_) for id_ in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted({*added, *stop_ids})
        self.bos_token_id, self.eos_token_id = None, min(stop_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode_text(text.decode("utf-8", "replace"))


def check_guide(guide: Guide) -> None:
    """Check a form before any model is there.

    Raises:
        InputError, CapabilityError: as `GuideCompiler.compile`.
    """
    _require_llguidance()
    from llguidance import LLMatcher

    if message := LLMatcher.validate_grammar(_grammar(guide)):
        raise _unusable(guide, message)


def _grammar(guide: Guide) -> str:
    from llguidance import LLMatcher

    made = LLMatcher.grammar_from_json_schema if guide.kind == "json_schema" else LLMatcher.grammar_from_regex
    try:
        return made(guide.text)
    except ValueError as error:
        raise _unusable(guide, str(error)) from error


def _require_llguidance() -> None:
    try:
        import llguidance  # noqa: F401
    except ImportError as error:
        raise CapabilityError(
            "Guided answers need llguidance.", where="sampling.guide", fix="pip install 'llguidance>=1.9,<2'"
        ) from error


def _unusable(guide: Guide, message: str) -> InputError:
    kind = "JSON Schema" if guide.kind == "json_schema" else "regular expression"
    return InputError(
        f"The answer cannot be guided by this {kind}.",
        where="sampling.guide",
        found=_in_one_line(message),
        fix=_FIXES[guide.kind],
    )


def _in_one_line(message: str) -> str:
    """The cause alone: llguidance's own text goes on with the grammar that it made of the form."""
    if error := _REGEX_ERROR.search(message):
        return f"{error['cause']}, at character {len(error['space']) + 1} of {error['pattern']}"
    return _PLACE.sub("", message).strip().partition("\n")[0]
