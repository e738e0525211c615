"""What a comparison of two engines found so far, by boundary.

Shape letters: S tokens, B samples of a batch, E hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from r1v_export.contract import Sizes
from r1v_export.parity.metrics import LogitStatistics, Statistics, TensorStatistics, TokenStatistics

if TYPE_CHECKING:
    from r1v_export.contract import Embed
    from r1v_export.parity.endpoints import Inputs

VOCABULARY_ROWS_AT_ONCE = 1024


@dataclass
class BoundaryStatistics:
    """Statistics by boundary name, and those of the logits by decode step."""

    by_name: dict[str, Statistics] = field(default_factory=dict)
    steps: dict[int, LogitStatistics] = field(default_factory=dict)
    """Teacher-forced logits by decode step, from 1; step 0 is the prefill."""

    def record(self, boundary: str, statistics: Statistics) -> None:
        """Merge statistics into those of a boundary."""
        known = self.by_name.get(boundary)
        # A boundary's statistics are all of one class.
        self.by_name[boundary] = known.merge(statistics) if known else statistics  # type: ignore[arg-type]

    def record_step(self, step: int, statistics: LogitStatistics) -> None:
        """Merge statistics into those of `decode` and of a step."""
        self.record("decode", statistics)
        # Without the errors by token: with a large vocabulary they are all the memory there is, and nobody looks.
        light = replace(statistics, error_by_token=None)
        self.steps[step] = self.steps[step].merge(light) if step in self.steps else light

    def record_inputs(self, inputs: Inputs, own_inputs: Inputs, sample: str) -> None:
        """Compare what both sides make of a sample."""
        self.record("pixels", TensorStatistics.of(inputs.pixel_values, own_inputs.pixel_values, sample))
        self.record("prompt", TokenStatistics.of(inputs.input_ids.tolist(), own_inputs.input_ids.tolist()))

    def record_vocabulary(self, reference: Embed, candidate: Embed, sizes: Sizes) -> None:
        """Look up every token: an embedding row that no sample uses may be wrong too."""
        for start in range(0, sizes.vocab, VOCABULARY_ROWS_AT_ONCE):
            stop = min(start + VOCABULARY_ROWS_AT_ONCE, sizes.vocab)
            ids_1S = np.arange(start, stop, dtype=np.int64)[None]
            expected, found = (embed(ids_1S, no_images(sizes))[0] for embed in (reference, candidate))
            self.record("embeds", TensorStatistics.of(expected, found, "(every token)", offset=start))


def of_row(row: int, expected_BV: np.ndarray, found_BV: np.ndarray, sample: str, step: int = 0) -> LogitStatistics:
    """Statistics of one row of logits; its index in `worst` is (step, token)."""
    return LogitStatistics.of(expected_BV[row : row + 1], found_BV[row : row + 1], sample, offset=step)


def no_images(sizes: Sizes) -> np.ndarray:
    """The image embeddings [0, E] of a text."""
    return np.empty((0, sizes.hidden), dtype=np.float32)
