"""How far two tensors, two sets of logits or two token sequences are apart.

Each class below is a set of sums and extremes that is filled from one pair of arrays, merges with others of its kind,
and gives its metrics as properties; so a comparison streams over samples and keeps nothing big. The reference always
comes first. Sums are float64. A row is a vector along the last axis: one token's features, one token's logits.

NaN and infinity, on either side, are an infinite error: every metric then takes its worst value, and `worst` names
the first such element. So does a pair of arrays of different shapes, which `shape_mismatch` then describes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

METRICS = {
    "max_abs_error": "max abs error",
    "mean_abs_error": "mean abs error",
    "relative_error": "relative error",
    "max_relative_error": "max relative error",
    "min_row_cosine": "worst row's cosine",
    "snr_db": "SNR (dB)",
    "top1_agreement": "top-1 agreement",
    "mean_kl": "mean KL (nats)",
    "max_kl": "max KL (nats)",
    "token_agreement": "token agreement",
    "sequence_agreement": "identical sequences",
}
"""Metric -> how people read it, in the order of the table."""

SHARES = frozenset({"top1_agreement", "token_agreement", "sequence_agreement"})
"""Metrics that are shares of 1."""


_BLOCK_ELEMENTS = 1 << 20
"""Elements that are widened to float64 at a time: 8 MiB for each temporary array, whatever is compared."""


@dataclass(frozen=True)
class Location:
    """One element of a compared tensor: whose, where, and what the two sides have there."""

    sample: str
    index: tuple[int, ...]
    reference: float
    candidate: float


@dataclass(frozen=True)
class TensorStatistics:
    """Statistics of candidate - reference over any number of arrays."""

    elements: int = 0
    max_abs_error: float = 0.0
    max_relative_error: float = 0.0
    """Largest |error| / max(|reference|, root mean square of the reference's row): the floor keeps elements that are
    small by chance from counting as badly wrong."""
    min_row_cosine: float = 1.0
    sum_abs_error: float = 0.0
    sum_square_error: float = 0.0
    sum_square_reference: float = 0.0
    nonfinite_reference: int = 0
    nonfinite_candidate: int = 0
    shape_mismatch: str | None = None
    worst: Location | None = None
    """Where the largest error is; the first NaN or infinity, where there is one."""

    @classmethod
    def of(cls, reference: np.ndarray, candidate: np.ndarray, sample: str = "", offset: int = 0) -> TensorStatistics:
        """Compare two float arrays [...] of the same shape.

        Args:
            sample: names them in `worst`.
            offset: added to the first index there, for a part of a larger array.
        """
        if reference.shape != candidate.shape:
            shapes = f"{list(reference.shape)} in the reference, {list(candidate.shape)} in the candidate"
            return cls(elements=reference.size, shape_mismatch=f"{sample}: {shapes}" if sample else shapes)
        blocks = _row_blocks(reference.shape)
        parts = (_of_rows(reference, candidate, rows, sample, offset) for rows in blocks)
        return reduce(cls.merge, parts, cls())

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """Combine with the statistics of other elements of the same tensor."""
        return TensorStatistics(
            elements=self.elements + other.elements,
            max_abs_error=max(self.max_abs_error, other.max_abs_error),
            max_relative_error=max(self.max_relative_error, other.max_relative_error),
            min_row_cosine=min(self.min_row_cosine, other.min_row_cosine),
            sum_abs_error=self.sum_abs_error + other.sum_abs_error,
            sum_square_error=self.sum_square_error + other.sum_square_error,
            sum_square_reference=self.sum_square_reference + other.sum_square_reference,
            nonfinite_reference=self.nonfinite_reference + other.nonfinite_reference,
            nonfinite_candidate=self.nonfinite_candidate + other.nonfinite_candidate,
            shape_mismatch=self.shape_mismatch or other.shape_mismatch,
            worst=_worse(self, other),
        )

    @property
    def nonfinite(self) -> int:
        """Number of NaN and infinite elements on both sides."""
        return self.nonfinite_reference + self.nonfinite_candidate

    @property
    def mean_abs_error(self) -> float:
        """Mean absolute error over all elements; 0 if there are none."""
        return self.sum_abs_error / self.elements if self.elements else 0.0

    @property
    def relative_error(self) -> float:
        """||candidate - reference|| / ||reference|| over all elements; infinite where only the reference is zero."""
        return _ratio(math.sqrt(self.sum_square_error), math.sqrt(self.sum_square_reference))

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio, 20 log10(1 / relative_error), in decibels: +inf where there is no error at all."""
        relative = self.relative_error
        return math.inf if relative == 0 else -20 * math.log10(relative)

    def metrics(self) -> dict[str, float]:
        """Every metric by name; the worst values where arrays are not finite or not of one shape."""
        if self.nonfinite or self.shape_mismatch:
            errors = ("max_abs_error", "mean_abs_error", "relative_error", "max_relative_error")
            return {**dict.fromkeys(errors, math.inf), "min_row_cosine": -1.0, "snr_db": -math.inf}
        return {
            "max_abs_error": self.max_abs_error,
            "mean_abs_error": self.mean_abs_error,
            "relative_error": self.relative_error,
            "max_relative_error": self.max_relative_error,
            "min_row_cosine": self.min_row_cosine,
            "snr_db": self.snr_db,
        }


def _row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices over the rows of an array of this shape, `_BLOCK_ELEMENTS` elements each."""
    rows = math.prod(shape[:-1])
    step = max(1, _BLOCK_ELEMENTS // max(1, math.prod(shape[-1:])))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _of_rows(reference: np.ndarray, candidate: np.ndarray, rows: slice, sample: str, offset: int) -> TensorStatistics:
    """Statistics of some rows of two arrays of one shape."""
    shape = reference.shape
    width = math.prod(shape[-1:])
    a, b = (array.reshape(-1, width)[rows].astype(np.float64) for array in (reference, candidate))

    def location(flat: int) -> Location:
        first, *rest = (int(i) for i in np.unravel_index(rows.start * width + flat, shape))
        return Location(sample, (first + offset, *rest), float(a.flat[flat]), float(b.flat[flat]))

    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        return TensorStatistics(
            elements=a.size,
            nonfinite_reference=int(np.count_nonzero(~np.isfinite(a))),
            nonfinite_candidate=int(np.count_nonzero(~np.isfinite(b))),
            worst=location(int(np.argmin(finite))),
        )
    if not a.size:
        return TensorStatistics()
    error = np.abs(b - a)
    squares_a, squares_b = np.square(a).sum(-1), np.square(b).sum(-1)
    floor = np.maximum(np.abs(a), np.sqrt(squares_a / width)[:, None])
    return TensorStatistics(
        elements=a.size,
        max_abs_error=float(error.max()),
        max_relative_error=float(_ratios(error, floor).max()),
        min_row_cosine=float(_cosines((a * b).sum(-1), squares_a, squares_b).min()),
        sum_abs_error=float(error.sum()),
        sum_square_error=float(np.square(error).sum()),
        sum_square_reference=float(squares_a.sum()),
        worst=location(int(error.argmax())),
    )


def _worse(first: TensorStatistics, second: TensorStatistics) -> Location | None:
    """The worst location of two; the first's where they are equally bad."""
    if first.worst is None or second.worst is None:
        return first.worst or second.worst
    if first.nonfinite or second.nonfinite:
        return first.worst if first.nonfinite else second.worst
    return second.worst if second.max_abs_error > first.max_abs_error else first.worst


def _ratio(error: float, size: float) -> float:
    if error == 0:
        return 0.0
    return error / size if size else math.inf


def _ratios(error: np.ndarray, size: np.ndarray) -> np.ndarray:
    """error / size; 0 where there is no error, infinite where only the size is 0."""
    ratios = np.divide(error, size, out=np.full_like(error, np.inf), where=size > 0)
    return np.where(error == 0, 0.0, ratios)


def _cosines(dot: np.ndarray, squares_a: np.ndarray, squares_b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows: 1 where both are zero, 0 where one is."""
    norms = np.sqrt(squares_a) * np.sqrt(squares_b)
    cosines = np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0)
    return np.where((squares_a == 0) & (squares_b == 0), 1.0, np.clip(cosines, -1.0, 1.0))


_NEAR_TIE_KL = 0.1
"""Share of error^2 / 2 nats, which an error in every logit amounts to at most, that rounding stays below."""


@dataclass(frozen=True)
class LogitStatistics:
    """What errors of logits do to the next token, over any number of rows of logits [rows, vocab]."""

    tensor: TensorStatistics = field(default_factory=TensorStatistics)
    rows: int = 0
    top1_agreeing: int = 0
    flip_gaps: tuple[float, ...] = ()
    """Of each row whose best tokens differ: by how much the reference prefers its own to the candidate's, in logits."""
    sum_kl: float = 0.0
    max_kl: float = 0.0
    error_by_token: np.ndarray | None = None
    """Largest error of each token's logit [vocab]: an error in few rows of lm_head shows here. None before any row,
    or where a row was not finite."""

    @classmethod
    def of(
        cls, reference_RV: np.ndarray, candidate_RV: np.ndarray, sample: str = "", offset: int = 0
    ) -> LogitStatistics:
        """Compare two float arrays [rows, vocab]; `sample` and `offset` as in `TensorStatistics.of`."""
        tensor = TensorStatistics.of(reference_RV, candidate_RV, sample, offset)
        rows = reference_RV.shape[0]
        if tensor.nonfinite or tensor.shape_mismatch or not rows:
            return cls(tensor, rows, sum_kl=math.inf, max_kl=math.inf) if rows else cls(tensor)
        divergence = kl_divergence(reference_RV, candidate_RV)
        gaps = _flip_gaps(reference_RV, candidate_RV)
        return cls(
            tensor,
            rows,
            top1_agreeing=rows - len(gaps),
            flip_gaps=gaps,
            sum_kl=float(divergence.sum()),
            max_kl=float(divergence.max()),
            error_by_token=np.abs(reference_RV - candidate_RV).max(0),
        )

    def merge(self, other: LogitStatistics) -> LogitStatistics:
        """Combine with the statistics of other rows."""
        columns = [s.error_by_token for s in (self, other) if s.error_by_token is not None]
        return LogitStatistics(
            self.tensor.merge(other.tensor),
            self.rows + other.rows,
            self.top1_agreeing + other.top1_agreeing,
            self.flip_gaps + other.flip_gaps,
            self.sum_kl + other.sum_kl,
            max(self.max_kl, other.max_kl),
            reduce(np.maximum, columns) if columns else None,
        )

    def metrics(self) -> dict[str, float]:
        """The tensor's metrics and `mean_kl`, `max_kl` (nats), `top1_agreement` (0 to 1)."""
        return {
            **self.tensor.metrics(),
            "mean_kl": self.sum_kl / self.rows if self.rows else 0.0,
            "max_kl": self.max_kl,
            "top1_agreement": self.top1_agreement(),
        }

    def near_ties(self, gap: float) -> int:
        """Rows whose best tokens differ although their logits in the reference are at most `gap` apart.

        One row, or a tenth of them: where more choices change, logits that are close to each other are not why. None
        where the divergence is more than a tenth of what an error of `gap` in every logit amounts to: rounding is not
        the cause then, such as of one wrong scale in a random model, whose logits are all close to each other.
        """
        if self.rows and self.sum_kl / self.rows > _NEAR_TIE_KL * gap**2 / 2:
            return 0
        return min(sum(each <= gap for each in self.flip_gaps), max(1, self.rows // 10))

    def top1_agreement(self, near_tie: float | None = None) -> float:
        """Share of rows (0 to 1) with the same best token.

        Args:
            near_tie: logits that are at most this far apart in the reference may change places.
        """
        agreeing = self.top1_agreeing + (0 if near_tie is None else self.near_ties(near_tie))
        return agreeing / self.rows if self.rows else 1.0


def _flip_gaps(reference_RV: np.ndarray, candidate_RV: np.ndarray) -> tuple[float, ...]:
    """For each row whose best tokens differ, the reference's logit of its own less that of the candidate's."""
    best_R, chosen_R = reference_RV.argmax(-1), candidate_RV.argmax(-1)
    rows = np.flatnonzero(best_R != chosen_R)
    wide_RV = reference_RV[rows].astype(np.float64)
    each = np.arange(len(rows))
    return tuple((wide_RV[each, best_R[rows]] - wide_RV[each, chosen_R[rows]]).tolist())


def kl_divergence(reference_RV: np.ndarray, candidate_RV: np.ndarray) -> np.ndarray:
    """KL(softmax(reference) || softmax(candidate)) of each row, in nats and float64; never negative. Returns [rows]."""
    log_p, log_q = log_softmax(reference_RV), log_softmax(candidate_RV)
    kl_R: np.ndarray = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(-1), 0.0)
    return kl_R


def log_softmax(logits_RV: np.ndarray) -> np.ndarray:
    """Logarithms of each row's probabilities, float64 [rows, vocab]."""
    shifted: np.ndarray = logits_RV.astype(np.float64) - logits_RV.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def top1_margin(logits_V: np.ndarray) -> float:
    """The largest logit less the second largest: how sure a greedy choice is."""
    second, first = np.partition(logits_V, -2)[-2:]
    return float(first) - float(second)


@dataclass(frozen=True)
class TokenStatistics:
    """Agreement of token sequences."""

    sequences: int = 0
    identical_sequences: int = 0
    tokens: int = 0
    """Positions compared; of two sequences of different lengths, those of the longer."""
    agreeing_tokens: int = 0

    @classmethod
    def of(cls, reference: Sequence[int], candidate: Sequence[int]) -> TokenStatistics:
        """Compare two token sequences position by position."""
        return cls(
            sequences=1,
            identical_sequences=int(list(reference) == list(candidate)),
            tokens=max(len(reference), len(candidate)),
            agreeing_tokens=sum(a == b for a, b in zip(reference, candidate, strict=False)),
        )

    def merge(self, other: TokenStatistics) -> TokenStatistics:
        """Combine with the statistics of other sequences."""
        return replace(
            self,
            sequences=self.sequences + other.sequences,
            identical_sequences=self.identical_sequences + other.identical_sequences,
            tokens=self.tokens + other.tokens,
            agreeing_tokens=self.agreeing_tokens + other.agreeing_tokens,
        )

    def metrics(self) -> dict[str, float]:
        """Metric name -> value; both are 1 if nothing was compared."""
        return {
            "token_agreement": self.agreeing_tokens / self.tokens if self.tokens else 1.0,
            "sequence_agreement": self.identical_sequences / self.sequences if self.sequences else 1.0,
        }


def first_divergence(reference: Sequence[int], candidate: Sequence[int]) -> int | None:
    """Position of the first token that differs, or at which one of the two has ended; None where they are equal."""
    pairs = zip(reference, candidate, strict=False)
    differing = next((position for position, (a, b) in enumerate(pairs) if a != b), None)
    if differing is None and len(reference) != len(candidate):
        return min(len(reference), len(candidate))
    return differing


Statistics = TensorStatistics | LogitStatistics | TokenStatistics
