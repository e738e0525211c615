"""From logits to a token: greedy or drawn, reproducible by seed whatever else is in the batch.

The processors and their order are those of transformers' `generate`: bias, repetition penalty, temperature, top-k,
top-p, min-p. Presence and frequency penalties are the OpenAI API's, and vLLM's: they count the answer alone.

Shape letter: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from r1v_export.errors import GraphError, UsageError
from r1v_export.generation import Sampling


class TokenLogprobs(NamedTuple):
    """How likely the model itself held a token to be, before any setting of the sampling.

    Attributes:
        logprob: of the chosen token.
        top: id and log probability of the likeliest tokens, the likeliest first, equal ones in the order of their ids.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses the tokens of one sequence.

    Each sequence has its own random stream and draws one number per token, so an answer depends on its own prompt and
    seed alone, not on its neighbors in the batch.

    Raises:
        UsageError: a bias is for a token that there is not.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int], vocab_size: int) -> None:
        self.sampling = sampling
        self._seen_V = np.zeros(vocab_size, dtype=bool)
        self._seen_V[list(prompt_ids)] = True
        self._counts: dict[int, int] = {}
        """Of the answer's tokens."""
        self._bias_ids = np.array([*sampling.logit_bias], dtype=np.int64)
        self._biases = np.array([*sampling.logit_bias.values()], dtype=np.float32)
        if self._bias_ids.size and self._bias_ids.max() >= vocab_size:
            raise UsageError(
                "logit_bias names a token that the model does not have.",
                where="sampling.logit_bias",
                expected=f"ids below {vocab_size}",
                found=int(self._bias_ids.max()),
                fix="remove it; the ids are those of the bundle's tokenizer.json",
            )

    @cached_property
    def _random(self) -> np.random.Generator:
        return np.random.default_rng(self.sampling.seed)

    def next(self, logits_V: np.ndarray, forced: int | None = None) -> int:
        """The next token, given the logits [vocab] float32 (left unchanged) after all tokens so far.

        Args:
            forced: the token that is to come, whatever the logits say.

        Raises:
            GraphError: the logits hold NaN or infinity.
        """
        # NaN sorts above everything in argmax, so checking one element finds any NaN and +inf.
        if not np.isfinite(logits_V[logits_V.argmax()]):
            raise GraphError(
                "The decoder's logits are not finite.",
                where="decoder",
                expected="finite numbers",
                found=f"{int((~np.isfinite(logits_V)).sum())} of {logits_V.size} are NaN or infinite",
                fix="run `r1v-export check` to find the first bad boundary, or build with --precision fp32",
            )
        token = self._choose(self._penalized(logits_V)) if forced is None else forced
        self._seen_V[token] = True
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def logprobs(self, logits_V: np.ndarray, token: int) -> TokenLogprobs:
        """Log probabilities of a chosen token, and of the likeliest ones, by the logits [vocab] it was chosen from."""
        scores_V = logits_V.astype(np.float64)
        scores_V -= scores_V.max()
        scores_V -= np.log(np.exp(scores_V).sum())
        count = min(self.sampling.logprobs or 0, len(scores_V))
        least = np.partition(scores_V, -count)[-count] if count else np.inf
        likeliest = np.flatnonzero(scores_V >= least)
        ordered = likeliest[np.argsort(-scores_V[likeliest], kind="stable")][:count]
        return TokenLogprobs(float(scores_V[token]), tuple((int(id_), float(scores_V[id_])) for id_ in ordered))

    def _penalized(self, logits_V: np.ndarray) -> np.ndarray:
        sampling = self.sampling
        counted = bool(self._counts) and (sampling.presence_penalty != 0 or sampling.frequency_penalty != 0)
        if not self._bias_ids.size and sampling.repetition_penalty == 1 and not counted:
            return logits_V
        logits_V = logits_V.copy()
        logits_V[self._bias_ids] += self._biases
        if sampling.repetition_penalty != 1:
            _penalize_repetition(logits_V, self._seen_V, sampling.repetition_penalty)
        if counted:
            ids, counts = (np.array(column) for column in zip(*self._counts.items(), strict=True))
            penalties = sampling.presence_penalty + sampling.frequency_penalty * counts
            logits_V[ids] -= penalties.astype(logits_V.dtype)
        return logits_V

    def _choose(self, logits_V: np.ndarray) -> int:
        if self.sampling.greedy:
            return int(logits_V.argmax())
        tokens, probabilities = candidates(logits_V, self.sampling)
        cumulative = probabilities.cumsum()
        drawn = self._random.random() * cumulative[-1]
        return int(tokens[min(np.searchsorted(cumulative, drawn, side="right"), len(tokens) - 1)])


def _penalize_repetition(logits_V: np.ndarray, seen_V: np.ndarray, penalty: float) -> None:
    seen, numbers = logits_V[seen_V], np.finfo(logits_V.dtype)
    limit, penalty = numbers.max, min(max(penalty, float(numbers.tiny)), float(numbers.max))
    with np.errstate(over="ignore"):  # Beyond the type's range a penalized logit stays at its end.
        penalized = np.where(seen < 0, seen * penalty, seen / penalty)
    logits_V[seen_V] = penalized.clip(-limit, limit)


def candidates(logits_V: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """What temperature, top-k, top-p and min-p leave of logits [vocab]: tokens and their probabilities (float64, not
    renormalized)."""
    tokens = np.arange(logits_V.size)
    if 0 < sampling.top_k < logits_V.size:
        kth_largest = np.partition(logits_V, -sampling.top_k)[-sampling.top_k]
        tokens = np.flatnonzero(logits_V >= kth_largest)
    below_best = logits_V[tokens].astype(np.float64)
    below_best -= below_best.max()
    with np.errstate(over="ignore"):  # At the lowest temperatures the others' probability is 0.
        probabilities = np.exp(below_best / sampling.temperature)
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        nucleus = _nucleus(probabilities, sampling.top_p)
        tokens, probabilities = tokens[nucleus], probabilities[nucleus]
    if sampling.min_p > 0:
        likely = probabilities >= sampling.min_p * probabilities.max()
        tokens, probabilities = tokens[likely], probabilities[likely]
    return tokens, probabilities


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Indices, likeliest first, of the smallest set that holds at least `top_p`."""
    # All entries below this bound together hold less than 1 - top_p, so none is in the nucleus: no need to sort them.
    likely = np.flatnonzero(probabilities >= (1 - top_p) / probabilities.size)
    ordered = likely[np.argsort(-probabilities[likely], kind="stable")]
    mass = probabilities[ordered]
    # The likeliest always stays: nothing comes before it.
    nucleus: np.ndarray = ordered[mass.cumsum() - mass < top_p]
    return nucleus
