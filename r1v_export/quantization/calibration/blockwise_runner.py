"""Samples on their way through the blocks of a model, one block at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import Compute, Matmul
from r1v_export.count import Count
from r1v_export.errors import InputError
from r1v_export.gpus import require_device
from r1v_export.log_event import log_event
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.quantization.apply.torch import apply
from r1v_export.quantization.artifact.qweight_places import QweightPlace
from r1v_export.quantization.calibration.activations import SAVED_BY_DEFAULT, Activations, SavePolicy
from r1v_export.quantization.calibration.blocks import (
    Block,
    materialize,
    require_finite_weights,
    stored_tensors,
    tensors_of,
)
from r1v_export.quantization.calibration.dataset import CalibrationSample
from r1v_export.quantization.calibration.matmul_precision import matmul_precision
from r1v_export.quantization.calibration.plan import CalibrationPlan
from r1v_export.quantization.quantized_block import QuantizedBlock
from r1v_export.quantization.quantized_linear import all_finite
from r1v_export.quantization.sizes import checkpoint_bytes
from r1v_export.quantization.statistics.activation_statistics import BlockStatistics
from r1v_export.quantization.statistics.collector import collect_statistics, not_finite

_LOG = logging.getLogger(__name__)

BlockCallback = Callable[[Block, Mapping[str, Tensor], BlockStatistics], QuantizedBlock | None]
"""Called with a block's tensors by checkpoint name and its statistics, which are empty if the recipe needs none; if it
quantizes, it returns the result."""

NO_STATISTICS = BlockStatistics({}, {})

ACTIVATION_MEMORY_BYTES = 4 << 30
"""Activations between blocks that are kept in memory by default."""


@dataclass(frozen=True)
class CalibrationOptions:
    """How a calibration is run. Nothing but the device and the precision of products changes a number of its result.

    Attributes:
        device: "cpu" computes in float32, "cuda" in the checkpoint's dtype.
        matmul: what the CPU rounds the operands of products to, see `matmul_precision`.
        activation_memory_bytes: activations between blocks that are kept in memory; what a block has more is written.
        saving: how much of the others is written all the same, for a run after an interrupted one.
        resume_folder: keeps finished blocks for a run after an interrupted one, and after the end for the caller, who
            removes it; next to the result and removed at the end if omitted.
        places: where quantized values will lie, see `artifact.place_qweight`: they are written in that layout.
        on_progress: called after every sample in every block.
    """

    device: str = "cpu"
    matmul: Matmul = "float32"
    activation_memory_bytes: int = ACTIVATION_MEMORY_BYTES
    saving: SavePolicy = SAVED_BY_DEFAULT
    resume_folder: Path | None = None
    places: Sequence[QweightPlace] = ()
    on_progress: ProgressCallback = ignore_progress


DEFAULT_OPTIONS = CalibrationOptions()


def compute_dtype(checkpoint: Checkpoint, device: str) -> Compute:
    """What the model is run in: float32 on the CPU, on a GPU the checkpoint's own dtype.

    Raises:
        CapabilityError: there is no such device.
    """
    if device == "cpu":
        return "float32"
    require_device(device)
    return checkpoint.spec.dtype


class BlockwiseRunner:
    """One checkpoint, one set of samples, one device.

    Args:
        folder: for the activations between blocks.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: CalibrationPlan,
        samples: Sequence[CalibrationSample],
        folder: Path,
        options: CalibrationOptions,
    ) -> None:
        self.checkpoint, self.plan, self.samples = checkpoint, plan, samples
        self.device = torch.device(options.device)
        self.dtype = getattr(torch, compute_dtype(checkpoint, options.device))
        self.matmul = options.matmul
        self.activations = Activations(
            folder,
            [sample.index for sample in samples],
            options.activation_memory_bytes,
            options.saving,
            together=plan.recipe.propagate_error,
        )
        self.on_progress = options.on_progress
        self._done = self._total = 0

    def run(
        self, finished: int, on_block: BlockCallback, on_finished: Callable[[Block], None], *, rounds: bool
    ) -> None:
        """Take every block after the first `finished` ones in turn.

        The samples go through the blocks up to the last one whose statistics are needed, beginning with what an earlier
        run left behind its finished blocks.

        Args:
            on_block: called for every block that the recipe quantizes.
            on_finished: called for every block, after `on_block`.
            rounds: whether `on_block` quantizes; for the time left.
        """
        plan, last = self.plan, self.plan.last_collected
        start = self.activations.resume_at(finished) if finished <= last else finished
        if plan.recipe.propagate_error:
            finished = start  # without its outputs, a finished block has to be quantized again to compute them
        self._plan_progress(start, finished, rounds)
        save_bytes = self._save_bytes(rounds)
        for index in range(start, len(plan.blocks)):
            block, module, statistics = plan.blocks[index], None, NO_STATISTICS
            propagates = plan.propagates_error(index)
            if plan.forward_passes(index) > propagates:
                module = materialize(block, self.checkpoint, self.dtype, self.device, self.matmul)
                statistics = self._run_block(index, block, module, collect=index >= finished, keep=not propagates)
            if index >= finished and (propagates or plan.is_quantized(block)):
                quantized = on_block(block, self._tensors(block, module), statistics)
                if propagates:
                    assert quantized is not None, "whoever quantizes returns what it made"
                    module, statistics = None, NO_STATISTICS
                    module = self._quantized(block, quantized)
                    self._run_block(index, block, module, collect=False, keep=True)
                quantized = None
            if index >= finished:
                on_finished(block)
                self._report(plan.rounding_cost(index) if rounds else 0)
            if index <= last:
                self.activations.advance(save_bytes[index], is_last=index == last)

    def _tensors(self, block: Block, module: nn.Module | None) -> Mapping[str, Tensor]:
        return tensors_of(block, module) if module else stored_tensors(block, self.checkpoint)

    def _quantized(self, block: Block, quantized: QuantizedBlock) -> nn.Module:
        """A block's module as it was quantized, in float32."""
        module = materialize(block, self.checkpoint, torch.float32, self.device)
        caches = {f"{block.name}.self_attn": quantized.kv} if quantized.kv else {}
        apply(module, quantized.linears, quantized.overrides, f"{block.name}.", caches)
        return module

    @torch.no_grad()
    def _run_block(self, index: int, block: Block, module: nn.Module, collect: bool, keep: bool) -> BlockStatistics:
        """Send the samples through a block.

        Args:
            collect: whether to collect statistics on the way.
            keep: whether what comes out is what the next block sees.
        """
        plan = self.plan
        groups = plan.collected_groups(block) if collect else []
        inputs = {block.module_name(group.linears[0]): group for group in groups}
        started = time.perf_counter()
        outputs = block.collected_outputs() if collect and plan.has_cache_scales(block) else {}
        grams, histograms = plan.gram_groups(block) if collect else set(), plan.recipe.observer.reads_histogram
        collecting = collect_statistics(module, inputs, grams, outputs, histograms)
        with matmul_precision(self.matmul), collecting as collector:
            for sample in self.samples:
                if self.activations.begins_at(sample.index) > index:
                    continue
                collector.sample = sample.name
                result = self._forward(index, block, module, sample, again=not keep)
                if keep and index < plan.last_collected:
                    self.activations.put(sample.index, result)
                self._report(plan.forward_cost(index, len(sample.token_ids), sample.tiles))
        message = "%(block)s: %(samples)s in %(seconds).1f s; statistics of %(inputs)s, %(grams)s"
        counts = {
            "samples": Count(len(self.samples), "sample"),
            "inputs": Count(len(inputs) + len(outputs), "input"),
            "grams": Count(len(grams), "Gram matrix", "Gram matrices"),
        }
        seconds = round(time.perf_counter() - started, 3)
        log_event(_LOG, logging.INFO, message, block=block.name, **counts, seconds=seconds)
        return collector.statistics()

    def _forward(self, index: int, block: Block, module: nn.Module, sample: CalibrationSample, again: bool) -> Tensor:
        try:
            result = block.forward(module, sample, self.activations.take(sample.index, again=again) if index else None)
            if not all_finite(result):
                raise not_finite(f"the output of {block.name}", sample.name)
        except InputError:
            require_finite_weights(block, module)  # only now: it takes as long as a few samples
            raise
        return result

    def _plan_progress(self, start: int, finished: int, rounds: bool) -> None:
        plan, begins_at = self.plan, self.activations.begins_at
        self._done = self._total = 0
        for index in range(start, len(plan.blocks)):
            samples = [sample for sample in self.samples if begins_at(sample.index) <= index]
            self._total += self._cost(index, samples, rounds and index >= finished)

    def _cost(self, index: int, samples: Sequence[CalibrationSample], rounds: bool) -> int:
        """Of a block, in multiplications."""
        plan = self.plan
        passes = sum(plan.forward_cost(index, len(sample.token_ids), sample.tiles) for sample in samples)
        return plan.forward_passes(index) * passes + (plan.rounding_cost(index) if rounds else 0)

    def _save_bytes(self, rounds: bool) -> list[float]:
        """What each block's part of the work allows to be saved."""
        plan = self.plan
        costs = [self._cost(index, self.samples, rounds) for index in range(len(plan.blocks))]
        share_bytes = self.activations.policy.share * checkpoint_bytes(plan.spec, plan.schemes, "bfloat16")
        return [share_bytes * cost / max(1, sum(costs)) for cost in costs]

    def _report(self, cost: int) -> None:
        self._done += cost
        self.on_progress(self._done, self._total)
