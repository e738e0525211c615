"""The first sample compared by what an engine has for one sequence, apart from the batches of all samples."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from operator import length_hint

from r1v_export.parity.boundaries import BoundaryComparator
from r1v_export.parity.boundary_statistics import BoundaryStatistics
from r1v_export.parity.endpoints import Endpoint
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.samples import ParitySample
from r1v_export.progress import ProgressCallback, subrange

CAUSE = "one sequence by itself is decoded by another graph than batches, which are within the limits"


def compare(
    reference: Endpoint,
    candidate: Endpoint,
    samples: Iterable[ParitySample],
    options: CheckOptions,
    on_progress: ProgressCallback,
) -> tuple[BoundaryStatistics, Iterable[ParitySample], ProgressCallback]:
    """Compare the first sample. Returns what was found, all samples, and the progress of comparing those."""
    share = 1 / (1 + length_hint(samples, 1))
    comparator = BoundaryComparator(reference, candidate, max_new_tokens=options.max_new_tokens, one_sequence=True)
    remaining = iter(samples)
    if first := list(islice(remaining, 1)):
        comparator.compare_batch(first, subrange(on_progress, 0.0, share))
    return comparator.found, chain(first, remaining), subrange(on_progress, share, 1.0)
