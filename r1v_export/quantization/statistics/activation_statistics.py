"""Statistics of the activations that enter a linear.

Everything is mergeable: maxima, counts and sums of disjoint sets of samples give those of their union. Maxima and
counts do so bit for bit, however the samples are distributed and in any order; sums are kept in float64.

Shape letters: N rows (tokens of all samples), I input channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from r1v_export.count import Count

_MANTISSA_BITS = 4
_LOWEST_EXPONENT, _HIGHEST_EXPONENT = -40, 24
_FLOAT32_MANTISSA_BITS, _FLOAT32_BIAS = 23, 127

BINS = (_HIGHEST_EXPONENT - _LOWEST_EXPONENT) << _MANTISSA_BITS
"""Bins of a histogram of magnitudes: 16 to each octave from 2**-40 to 2**24."""

_CHUNK_ELEMENTS = 1 << 17
"""Activations that are processed at a time on the CPU: what is made of them stays in a core's cache."""
_CUDA_CHUNK_ELEMENTS = 1 << 22
"""On a GPU; bounds the float64 copies made of them."""


def bin_edges() -> Tensor:
    """The edges of a histogram's bins, float64 [BINS + 1], from 2**-40 to 2**24.

    Bin i holds edges[i] <= |x| < edges[i + 1]; the first bin takes smaller magnitudes too (zero among them), the last
    one larger ones.
    """
    steps = 1 << _MANTISSA_BITS
    position = torch.arange(BINS + 1, dtype=torch.float64)
    return torch.exp2(_LOWEST_EXPONENT + (position / steps).floor()) * (1 + position.remainder(steps) / steps)


def bin_index(magnitudes: Tensor) -> Tensor:
    """The bin of each magnitude [...] (float32, not negative), int32 of the same shape.

    The bin is read off the float's own bits, exponent and four bits of mantissa: exact on every device.
    """
    lowest = (_LOWEST_EXPONENT + _FLOAT32_BIAS) << _MANTISSA_BITS
    bits = magnitudes.contiguous().view(torch.int32) >> (_FLOAT32_MANTISSA_BITS - _MANTISSA_BITS)
    return (bits - lowest).clamp_(0, BINS - 1)


@dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of N activation vectors of I channels each.

    Attributes:
        channel_absmax: largest magnitude of each channel, float32.
        channel_sum: sum of the magnitudes of each channel, float64.
        histogram: how many of the N * I magnitudes fall into each of the `BINS` bins, int64; zeros where it was not
            collected.
        rows: N, int64 without axes.
    """

    channel_absmax: Tensor
    channel_sum: Tensor
    histogram: Tensor
    rows: Tensor

    @classmethod
    def empty(cls, channels: int) -> ActivationStatistics:
        """Statistics of no activations: what every other is merged into."""
        return cls(
            torch.zeros(channels),
            torch.zeros(channels, dtype=torch.float64),
            torch.zeros(BINS, dtype=torch.int64),
            torch.zeros((), dtype=torch.int64),
        )

    @classmethod
    def from_activations(cls, x: Tensor, with_histogram: bool = True) -> ActivationStatistics:
        """Statistics of activations [..., I] of any floating dtype on any device; the result is on the CPU.

        A NaN or infinity among them shows as one in `channel_absmax`.
        """
        x_NI = x.detach().reshape(-1, x.shape[-1])
        channels = x_NI.shape[1]
        absmax_I = torch.zeros(channels, device=x.device)
        sum_abs_I = torch.zeros(channels, dtype=torch.float64, device=x.device)
        histogram = torch.zeros(BINS, dtype=torch.int64, device=x.device)
        at_once = _CHUNK_ELEMENTS if x.device.type == "cpu" else _CUDA_CHUNK_ELEMENTS
        for part_NI in x_NI.split(max(1, at_once // channels)):
            if not len(part_NI):
                continue
            magnitudes_NI = part_NI.float().abs()
            absmax_I = torch.maximum(absmax_I, magnitudes_NI.amax(0))
            sum_abs_I += magnitudes_NI.sum(0, dtype=torch.float64)
            if with_histogram:
                histogram += torch.bincount(bin_index(magnitudes_NI).flatten(), minlength=BINS)
        return cls(absmax_I.cpu(), sum_abs_I.cpu(), histogram.cpu(), torch.tensor(len(x_NI)))

    @property
    def absmax(self) -> float:
        """Largest magnitude of the whole tensor."""
        return float(self.channel_absmax.max())

    @property
    def channel_mean(self) -> Tensor:
        """Mean magnitude of each channel, float32; zero without activations."""
        return (self.channel_sum / self.rows.clamp(min=1)).float()

    @property
    def is_finite(self) -> bool:
        """Whether no activation was NaN or infinite."""
        return bool(self.channel_absmax.isfinite().all())


def merge(a: ActivationStatistics, b: ActivationStatistics) -> ActivationStatistics:
    """Statistics of the union of two disjoint sets of activations of the same channels.

    Raises:
        ValueError: the numbers of channels differ.
    """
    if a.channel_absmax.shape != b.channel_absmax.shape:
        raise ValueError(
            f"statistics of {len(a.channel_absmax)} and of {Count(len(b.channel_absmax), 'channel')} cannot be merged"
        )
    return ActivationStatistics(
        torch.maximum(a.channel_absmax, b.channel_absmax),
        a.channel_sum + b.channel_sum,
        a.histogram + b.histogram,
        a.rows + b.rows,
    )


def add_gram(total_II: Tensor, x: Tensor) -> None:
    """Add the sum over rows of x x^T, in place, to a float32 [I, I] matrix on the activations' device.

    This Gram matrix is what AWQ and GPTQ weigh the errors of weights with.
    """
    x_NI = x.detach().reshape(-1, x.shape[-1]).float()
    total_II.addmm_(x_NI.T, x_NI)


@dataclass(frozen=True)
class BlockStatistics:
    """All statistics of one block.

    Attributes:
        activations: by name: those of an input (named after the first linear it enters, see
            `groups.LinearGroup`), or the keys and values that a decoder layer caches.
        grams: Gram matrices of inputs, float32, by the same names, of those alone for which an algorithm needs it.
    """

    activations: Mapping[str, ActivationStatistics]
    grams: Mapping[str, Tensor]


def merge_blocks(a: BlockStatistics, b: BlockStatistics) -> BlockStatistics:
    """Statistics of one block over the union of two disjoint sets of samples.

    Raises:
        ValueError: they are of different blocks.
    """
    if a.activations.keys() != b.activations.keys() or a.grams.keys() != b.grams.keys():
        raise ValueError("statistics of different blocks cannot be merged")
    return BlockStatistics(
        {name: merge(statistics, b.activations[name]) for name, statistics in a.activations.items()},
        {name: gram_II + b.grams[name] for name, gram_II in a.grams.items()},
    )


_FIELDS = tuple(field.name for field in fields(ActivationStatistics))
_GRAM = "gram_II"


def to_tensors(statistics: BlockStatistics) -> dict[str, Tensor]:
    """A block's statistics as flat, named tensors, for a safetensors file: `{name}/{field}`."""
    tensors = {
        f"{name}/{field}": getattr(collected, field)
        for name, collected in statistics.activations.items()
        for field in _FIELDS
    }
    return tensors | {f"{name}/{_GRAM}": gram_II for name, gram_II in statistics.grams.items()}


def from_tensors(tensors: Mapping[str, Tensor]) -> BlockStatistics:
    """The inverse of `to_tensors`.

    Raises:
        ValueError: a tensor is missing or superfluous.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, field = key.rpartition("/")
        by_name.setdefault(name, {})[field] = tensor
    grams = {name: found.pop(_GRAM) for name, found in by_name.items() if _GRAM in found}
    for name, found in by_name.items():
        if set(found) != set(_FIELDS):
            raise ValueError(f"statistics of {name!r} have {sorted(found)} instead of {sorted(_FIELDS)}")
    return BlockStatistics({name: ActivationStatistics(**found) for name, found in by_name.items()}, grams)
