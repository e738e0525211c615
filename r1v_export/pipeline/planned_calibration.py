"""A build's calibration before it runs: what decides its numbers, how long it takes, and whether it fits here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig
from r1v_export.count import Count
from r1v_export.errors import CapabilityError
from r1v_export.pipeline.budget import budget_candidates, require_measurable_budget, whole_model_fits
from r1v_export.pipeline.calibration import chosen_recipe, data_digest
from r1v_export.pipeline.calibration_cost import (
    CalibrationCost,
    calibration_cost,
    require_memory,
    require_memory_for_responses,
    response_seconds,
)
from r1v_export.pipeline.calibration_samples import SampleSize, calibration_examples, sample_sizes
from r1v_export.pipeline.effort import resolved_calibration
from r1v_export.pipeline.rates import measured_rates
from r1v_export.pipeline.search_cost import SearchCost
from r1v_export.pipeline.stage import Needs
from r1v_export.progress import duration
from r1v_export.quantization.calibration.dataset import require_sample_for_each
from r1v_export.quantization.calibration.matmul_precision import choose_matmul
from r1v_export.quantization.calibration.plan import reads_samples
from r1v_export.quantization.calibration.raw_examples import RawExample
from r1v_export.quantization.recipe import Recipe
from r1v_export.quantization.sizes import calibration_bytes, parameter_count


@dataclass(frozen=True)
class PlannedCalibration:
    """A calibration that computes scales, and is not given them.

    Attributes:
        asked: the build's config.
        config: the same, of `resolved_calibration`.
        recipe: None where a budget has yet to find it.
        worker_bytes: free memory of the smallest worker, where workers of a cluster calibrate.
    """

    asked: BuildConfig
    config: BuildConfig
    checkpoint: Checkpoint
    recipe: Recipe | None
    worker_bytes: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its numbers."""
        calibration = self.config.calibration
        return {
            "recipes": {name: recipe.model_dump(mode="json") for name, recipe in self._recipes.items()},
            "budget": self.config.budget,
            "samples": calibration.samples,
            "shards": calibration.shards,
            "shortest": calibration.effort == "quick",
            "data": data_digest(calibration.data),
            "image_policy": self.config.image_policy,
            "device": self.config.device,
            "matmul": calibration.matmul_precision,
        }

    def seconds(self) -> float:
        """Roughly how long it takes; of a budget with the first mix that it tries."""
        costs = [cost.seconds(measured_rates()) for cost in self._costs]
        seconds = sum(costs) + response_seconds(self.checkpoint.spec, self._unanswered)
        return seconds if self.recipe else seconds + max(costs) + self._search.seconds(measured_rates())

    @cached_property
    def needs(self) -> Needs:
        """Memory and disk while it runs, what the effort decided, and why it cannot run here.

        Raises:
            InputError: the calibration data cannot be used, or has fewer samples than there are shards.
        """
        require_sample_for_each(self.config.calibration.shards, len(self._examples))
        memory = [cost.memory_bytes for cost in self._costs]
        needs = Needs(
            memory_bytes=max(memory if self.recipe else [*memory, self._search.memory_bytes]),
            scratch_bytes=max(cost.scratch_bytes for cost in self._costs) + self._searched_bytes,
            note=self._note(),
        )
        try:
            require_measurable_budget(self.config, self.checkpoint)
            require_memory(self._costs, self.worker_bytes)
            if self._unanswered:
                require_memory_for_responses(self.config, self.checkpoint.spec, self.worker_bytes)
        except CapabilityError as error:
            return replace(needs, obstacle=error)
        return needs

    def require_possible(self) -> None:
        """Check that it can run.

        Raises:
            CapabilityError: it does not fit into memory.
            InputError: as `needs`.
        """
        if self.needs.obstacle is not None:
            raise self.needs.obstacle

    @property
    def _recipes(self) -> dict[str, Recipe]:
        """The recipe, or those that a budget chooses between."""
        return {"": self.recipe} if self.recipe else budget_candidates(self.config, self.checkpoint)

    @cached_property
    def _unanswered(self) -> int:
        """How many prompts the model has to answer before it is calibrated on them."""
        if self.recipe and not reads_samples(self.recipe, self.checkpoint.spec):
            return 0
        return sum(example.answer is None for example in self._examples)

    @cached_property
    def _examples(self) -> list[RawExample]:
        return calibration_examples(self.config, self.checkpoint)

    @cached_property
    def _samples(self) -> list[SampleSize]:
        return sample_sizes(self.config, self.checkpoint, self._examples)

    @cached_property
    def _costs(self) -> list[CalibrationCost]:
        """Of each of the recipes."""
        return [self._cost(self.config, recipe, self._samples) for recipe in self._recipes.values()]

    @property
    def _searched_bytes(self) -> int:
        """Disk for what a budget chooses between, while it does."""
        if self.recipe:
            return 0
        return sum(calibration_bytes(self.checkpoint.spec, cost.plan.schemes) for cost in self._costs)

    @property
    def _search(self) -> SearchCost:
        """Of a budget."""
        plans = [cost.plan for cost in self._costs]
        return SearchCost(plans, self._samples, whole_model_fits(self.checkpoint))

    def _cost(self, config: BuildConfig, recipe: Recipe, samples: Sequence[SampleSize]) -> CalibrationCost:
        matmul = choose_matmul(config.calibration.matmul_precision, self.checkpoint, config.device)
        return calibration_cost(config, self.checkpoint.spec, recipe, samples, matmul, self.worker_bytes)

    def _note(self) -> str:
        """Which sizes a budget's are; that the effort is quick where nobody asked for that, and what a full one would
        take."""
        if self.recipe is None:
            return "the budget decides what is quantized, so that sizes are the largest that it allows"
        if self.asked.calibration.effort != "auto" or self.config.calibration.effort == "full":
            return ""
        calibration = self.asked.calibration.model_copy(update={"effort": "full"})
        full = resolved_calibration(self.asked.model_copy(update={"calibration": calibration}), self.checkpoint)
        recipe = chosen_recipe(full)
        assert recipe is not None
        if recipe == self.recipe and not reads_samples(recipe, self.checkpoint.spec):
            return ""  # it was named, and whatever the effort, weights alone decide
        samples = sample_sizes(full, self.checkpoint, calibration_examples(full, self.checkpoint))
        seconds = self._cost(full, recipe, samples).seconds(measured_rates())
        parameters = parameter_count(self.checkpoint.spec) / 1e9
        return (
            f"quick ({self._how(self.config, self.recipe)}), for {parameters:.0f} billion parameters on a CPU; "
            f"--effort full ({self._how(full, recipe)}) takes about {duration(seconds)}"
        )

    def _how(self, config: BuildConfig, recipe: Recipe) -> str:
        """`int4-rtn from weights alone`, or `int4-gptq on 128 samples`."""
        samples = config.calibration.samples
        reads = samples is not None and reads_samples(recipe, self.checkpoint.spec)
        source = f"on {Count(samples or 0, 'sample')}" if reads else "from weights alone"
        return f"{recipe.name} {source}"
