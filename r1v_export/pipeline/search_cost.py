"""What the search within a budget measures (`mixed_precision.sensitivity`): seconds and memory, before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, cycle, islice

from r1v_export.pipeline.calibration_cost import forward_seconds
from r1v_export.pipeline.calibration_samples import SampleSize
from r1v_export.pipeline.estimate import PROCESS_BYTES
from r1v_export.pipeline.rates import Rates
from r1v_export.quantization.calibration.blocks import Block
from r1v_export.quantization.calibration.plan import CalibrationPlan
from r1v_export.quantization.mixed_precision.search import MEASURED_SAMPLES

_COPIED_VALUES_PER_S = 4e8
"""Weights of a block that is copied to quantize one of its modules."""
_LOGITS_PER_S = 5e7
"""Logits of which a divergence is computed, in float64."""
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class SearchCost:
    """What measuring every module in every precision takes, and then the mix that was chosen.

    Attributes:
        plans: of the recipes that it chooses between.
        samples: sizes of samples like those that it measures on.
        with_kl: whether divergences are measured, for which each module in each precision sends the samples through
            all blocks behind it.
    """

    plans: Sequence[CalibrationPlan]
    samples: Sequence[SampleSize]
    with_kl: bool

    @property
    def passes(self) -> list[int]:
        """How many times the samples go through each block while modules are measured."""
        if not self.with_kl:
            return [1 + count for count in self._options]
        # From the block itself on, and through all of them for the float model's answers.
        return [2 + options for options in accumulate(self._options)]

    def seconds(self, rates: Rates) -> float:
        """Roughly how long it takes, besides calibrating."""
        whole = 2 if self.with_kl else 0  # the chosen mix next to the float model, once
        alone = [
            forward_seconds(block, self._parameters[block.name], self._measured, "float32", rates)
            for block in self._blocks
        ]
        forward = sum((count + whole) * seconds for count, seconds in zip(self.passes, alone, strict=True))
        copied = sum(n * self._parameters[block.name] for n, block in zip(self._options, self._blocks, strict=True))
        answers = (sum(self._options) + 1) * self._logits if self.with_kl else 0
        return forward + copied / _COPIED_VALUES_PER_S + answers / _LOGITS_PER_S

    @property
    def memory_bytes(self) -> int:
        """The most that is held at once: the whole model in float32 where divergences are measured, else a block, with
        a block's copy, and answers of both models."""
        largest = max(self._parameters.values())
        held = sum(self._parameters.values()) + 2 * self._logits if self.with_kl else largest
        return PROCESS_BYTES + _FLOAT_BYTES * (held + largest)

    @property
    def _blocks(self) -> list[Block]:
        return self.plans[0].blocks

    @property
    def _parameters(self) -> dict[str, int]:
        return self.plans[0].parameters

    @cached_property
    def _measured(self) -> list[SampleSize]:
        return list(islice(cycle(self.samples), MEASURED_SAMPLES))

    @property
    def _logits(self) -> int:
        """Of all samples' tokens; those in front of an image are few, and counted."""
        spec = self.plans[0].spec
        tokens = (sample.tokens - sample.tiles * spec.tokens_per_tile for sample in self._measured)
        return sum(tokens) * spec.language.vocab_size

    @property
    def _options(self) -> list[int]:
        """Modules of each block, each as often as there are precisions for it."""
        return [
            sum(
                any(linear in plan.schemes for linear in group.linears) for plan in self.plans for group in block.groups
            )
            for block in self._blocks
        ]
