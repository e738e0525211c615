"""From logits to a token: greedy or drawn, reproducible by seed whatever else is in the batch.

The processors and their order are those of transformers' `generate`: repetition penalty, temperature, top-k, top-p.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from r1v_export.errors import GraphError, UsageError


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen and when it ends.

    Args:
        max_new_tokens: at most this many tokens are generated.
        temperature: divides the logits; 0 picks the likeliest token (greedy), and top_p, top_k and seed do nothing.
        top_p: draw from the smallest set of likeliest tokens that holds this much probability; 1 is off.
        top_k: draw from this many likeliest tokens (and those equal to the last); 0 is off.
        repetition_penalty: divides positive and multiplies negative logits of tokens already in prompt or answer.
        seed: of this answer's own random stream; None takes fresh entropy.
        stop: the answer ends before the first of these strings.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "max_new_tokens", "at least 1", self.max_new_tokens)
        _require(0 <= self.temperature < float("inf"), "temperature", "0 (greedy) or more", self.temperature)
        _require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _require(self.top_k >= 0, "top_k", "0 (off) or more", self.top_k)
        _require(0 < self.repetition_penalty < float("inf"), "repetition_penalty", "above 0", self.repetition_penalty)
        _require(self.seed is None or self.seed >= 0, "seed", "0 or more", self.seed)
        _require(all(self.stop), "stop", "strings that are not empty", self.stop)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _require(holds: bool, field: str, expected: str, found: object) -> None:
    if not holds:
        raise UsageError(f"{field} is out of range.", where=f"sampling.{field}", expected=expected, found=found)


class Sampler:
    """Chooses the tokens of one sequence.

    Each sequence has its own random stream and draws one number per token, so an answer depends on its own prompt and
    seed alone, not on its neighbours in the batch.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int], vocab_size: int) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._seen_V = np.zeros(vocab_size, dtype=bool)
        self._seen_V[list(prompt_ids)] = True

    def next(self, logits_V: np.ndarray) -> int:
        """The next token, given the logits [vocab] float32 (left unchanged) after all tokens so far.

        Raises:
            GraphError: the logits hold NaN or infinity.
        """
        # NaN sorts above everything in argmax, so looking at one element finds any NaN and +inf.
        if not np.isfinite(logits_V[logits_V.argmax()]):
            raise GraphError(
                "The decoder's logits are not finite.",
                where="decoder",
                expected="finite numbers",
                found=f"{int((~np.isfinite(logits_V)).sum())} of {logits_V.size} are NaN or infinite",
                fix="run `r1v-export check` to find the first bad boundary, or build with --precision fp32",
            )
        token = self._choose(self._penalised(logits_V))
        self._seen_V[token] = True
        return token

    def _penalised(self, logits_V: np.ndarray) -> np.ndarray:
        penalty = self.sampling.repetition_penalty
        if penalty == 1:
            return logits_V
        logits_V = logits_V.copy()
        seen = logits_V[self._seen_V]
        logits_V[self._seen_V] = np.where(seen < 0, seen * penalty, seen / penalty)
        return logits_V

    def _choose(self, logits_V: np.ndarray) -> int:
        if self.sampling.greedy:
            return int(logits_V.argmax())
        tokens, probabilities = candidates(logits_V, self.sampling)
        cumulative = probabilities.cumsum()
        drawn = self._random.random() * cumulative[-1]
        return int(tokens[min(np.searchsorted(cumulative, drawn, side="right"), len(tokens) - 1)])


def candidates(logits_V: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that temperature, top-k and top-p leave and their probabilities (float64, not renormalised)."""
    tokens = np.arange(logits_V.size)
    if 0 < sampling.top_k < logits_V.size:
        kth_largest = np.partition(logits_V, -sampling.top_k)[-sampling.top_k]
        tokens = np.flatnonzero(logits_V >= kth_largest)
    scaled = logits_V[tokens].astype(np.float64) / sampling.temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        nucleus = _nucleus(probabilities, sampling.top_p)
        tokens, probabilities = tokens[nucleus], probabilities[nucleus]
    return tokens, probabilities


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Indices, likeliest first, of the smallest set that holds at least `top_p`."""
    # All entries below this bound together hold less than 1 - top_p, so none is in the nucleus: no need to sort them.
    likely = np.flatnonzero(probabilities >= (1 - top_p) / probabilities.size)
    ordered = likely[np.argsort(-probabilities[likely], kind="stable")]
    mass = probabilities[ordered]
    # The likeliest always stays: nothing comes before it.
    return ordered[mass.cumsum() - mass < top_p]
