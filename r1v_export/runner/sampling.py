"""From logits to a token: greedy or drawn, reproducible by seed whatever else is in the batch.

The processors and their order are those of transformers' `generate`: repetition penalty, temperature, top-k, top-p.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from r1v_export.errors import GraphError
from r1v_export.generation import Sampling


class Sampler:
    """Chooses the tokens of one sequence.

    Each sequence has its own random stream and draws one number per token, so an answer depends on its own prompt and
    seed alone, not on its neighbors in the batch.
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
        # NaN sorts above everything in argmax, so checking one element finds any NaN and +inf.
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
        seen, numbers = logits_V[self._seen_V], np.finfo(logits_V.dtype)
        limit, penalty = numbers.max, min(max(penalty, float(numbers.tiny)), float(numbers.max))
        with np.errstate(over="ignore"):  # Beyond the type's range a penalized logit stays at its end.
            penalized = np.where(seen < 0, seen * penalty, seen / penalty)
        logits_V[self._seen_V] = penalized.clip(-limit, limit)
        return logits_V

    def _choose(self, logits_V: np.ndarray) -> int:
        if self.sampling.greedy:
            return int(logits_V.argmax())
        tokens, probabilities = candidates(logits_V, self.sampling)
        cumulative = probabilities.cumsum()
        drawn = self._random.random() * cumulative[-1]
        return int(tokens[min(np.searchsorted(cumulative, drawn, side="right"), len(tokens) - 1)])


def candidates(logits_V: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that temperature, top-k and top-p leave and their probabilities (float64, not renormalized)."""
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
