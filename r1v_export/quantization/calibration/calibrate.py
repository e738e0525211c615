"""Calibration: samples stream through the model block by block, and every block is quantized as soon as its statistics
are complete.

At any time one block's weights are held, one sample's activations within it, and of those between blocks as many as
the caller allows; so memory does not grow with the depth of the model. A block that is done is written down: killed
anywhere and started again, a calibration continues with the next block and writes the same bytes.

The model runs in float throughout: a block's inputs do not depend on how those before it were quantized, which is
what lets shards of the samples run on several machines and be merged, see `shards`. By a recipe with `propagate_error`
they do: the samples go through each block twice, for its statistics and, once it is quantized, for its outputs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.listing import shorten
from r1v_export.count import Count
from r1v_export.errors import InputError, UsageError
from r1v_export.log_event import log_event
from r1v_export.manifest import to_json
from r1v_export.quantization.algorithms.quantize_block import quantize_block
from r1v_export.quantization.artifact.artifact import SCALES
from r1v_export.quantization.artifact.block_tensors import qweight_tensors, scale_tensors
from r1v_export.quantization.artifact.documents import RECIPE, STATS, checkpoint_fingerprint, read_stats
from r1v_export.quantization.artifact.qweight_places import QweightPlace
from r1v_export.quantization.calibration.blocks import Block
from r1v_export.quantization.calibration.blockwise_runner import (
    DEFAULT_OPTIONS,
    BlockwiseRunner,
    CalibrationOptions,
    compute_dtype,
)
from r1v_export.quantization.calibration.dataset import CalibrationSet
from r1v_export.quantization.calibration.key import CalibrationKey, make_key
from r1v_export.quantization.calibration.plan import CalibrationPlan
from r1v_export.quantization.calibration.resume import KEY, BlockRecord, ResumeState, open_resume_state, write_text
from r1v_export.quantization.calibration_stats import InputEntry, Stats
from r1v_export.quantization.quantized_block import QuantizedBlock
from r1v_export.quantization.recipe import Imported, Recipe, describe
from r1v_export.quantization.statistics.activation_statistics import ActivationStatistics, BlockStatistics

_LOG = logging.getLogger(__name__)


def calibrate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    calibration: CalibrationSet,
    out: Path,
    options: CalibrationOptions = DEFAULT_OPTIONS,
) -> Stats:
    """Quantize a checkpoint's linears as a recipe says, and write the result as an `artifact.Artifact`.

    Args:
        calibration: a whole set; for shards of one see `shards`.
        out: must not exist or be empty.

    Raises:
        UsageError: the recipe does not fit the model, or `out` holds something.
        InputError: no sample reaches an input whose statistics are needed, or only zeros, or NaN or infinity does.
        CheckpointError: a weight is NaN or infinite.
        CapabilityError: there is no such device.
    """
    if calibration.shard.count > 1:
        raise UsageError(
            "A single shard is not enough to calibrate from.",
            found=f"shard {calibration.shard}",
            fix="merge all shards first",
        )
    compute = compute_dtype(checkpoint, options.device)
    key = make_key(checkpoint_fingerprint(checkpoint), recipe, compute, options.matmul, calibration)
    plan = make_plan(checkpoint, recipe)
    done, unfinished = is_done(key, out), open_resume_state(out, key, options.resume_folder)
    _log_plan(plan, key)
    if done:
        _LOG.info("the calibration was done before")
        unfinished.clear()
        return read_stats(out)
    quantization = Quantization(plan, unfinished, options.places)
    runner = BlockwiseRunner(checkpoint, plan, calibration.samples, unfinished.activations, options)
    runner.run(quantization.finished, quantization.quantize, quantization.finish_block, rounds=True)
    return quantization.finish(out)


def _log_plan(plan: CalibrationPlan, key: CalibrationKey) -> None:
    log_event(
        _LOG,
        logging.INFO,
        "calibration by %(recipe)s: %(samples)s, %(blocks)s, %(linears)s, in %(compute)s, products of %(matmul)s",
        recipe=plan.recipe.name,
        samples=Count(len(key.samples), "sample"),
        blocks=Count(len(plan.blocks), "block"),
        linears=Count(len(plan.schemes), "linear"),
        compute=key.compute,
        matmul=key.matmul,
    )


def make_plan(checkpoint: Checkpoint, recipe: Recipe) -> CalibrationPlan:
    """The plan of calibrating a checkpoint by a recipe.

    Raises:
        UsageError: the recipe does not fit the model, or quantizes nothing.
    """
    plan = CalibrationPlan(checkpoint.spec, recipe)
    imported = [name for name, scheme in plan.schemes.items() if isinstance(scheme.weights, Imported)]
    if imported:
        raise UsageError(
            "The recipe describes a checkpoint that was quantized already and cannot be used for calibration.",
            where=f"recipe {recipe.name}",
            expected="algorithm: rtn, awq, gptq or smoothquant",
            found=f"algorithm: imported at {shorten(imported)}",
            fix="build that checkpoint without --recipe",
        )
    if not plan.schemes:
        raise UsageError(
            "The recipe quantizes nothing.",
            where=f"recipe {recipe.name}",
            expected="a rule with a scheme",
            fix="build with --precision bf16, which needs no calibration",
        )
    return plan


def is_done(key: CalibrationKey, out: Path) -> bool:
    """Whether `out` holds the result of this key already.

    Raises:
        UsageError: it holds anything else.
    """
    return holds_result(out, lambda: (out / STATS).is_file() and read_stats(out).fingerprint == key.fingerprint)


def holds_result(out: Path, is_result: Callable[[], bool]) -> bool:
    """Whether `out` holds what is to be written there; False where it is empty or not there.

    Raises:
        UsageError: it holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if is_result():
        return True
    raise UsageError("The output folder is not empty.", where=out, found=_contents(out), fix="name a new one with -o")


def _contents(out: Path) -> str:
    """What a folder holds that is no result of the calibration that was asked for."""
    if not out.is_dir():
        return "a file"
    if (out / STATS).is_file():
        return "another finished calibration"
    if (out / KEY).is_file():
        return "another shard of a calibration"
    return shorten(sorted(path.name for path in out.iterdir()))


class Quantization:
    """Quantizes blocks one after the other and writes each to the resume folder.

    Args:
        places: of `CalibrationOptions`.
    """

    def __init__(self, plan: CalibrationPlan, state: ResumeState, places: Sequence[QweightPlace] = ()) -> None:
        self.plan, self.state, self.places = plan, state, places
        self._record = BlockRecord()

    @property
    def finished(self) -> int:
        """How many blocks, from the first on, are done."""
        names = [block.name for block in self.plan.blocks]
        return next((i for i, name in enumerate(names) if self.state.record(name) is None), len(names))

    def quantize(self, block: Block, tensors: Mapping[str, Tensor], collected: BlockStatistics) -> QuantizedBlock:
        """Quantize a block's linears, given its tensors by checkpoint name; write and return what becomes of them.

        Raises:
            InputError: an input whose statistics are needed has none, or only zeros.
        """
        for group in self.plan.collected_groups(block):
            _require_statistics(group.name, collected.activations[group.name])
        started = time.perf_counter()
        plan, recipe = self.plan, self.plan.recipe
        schemes_of, rounded = (
            (plan.schemes, frozenset[str]()) if recipe.propagate_error else (plan.calibrated, plan.rounded)
        )
        quantized = quantize_block(
            block.groups,
            schemes_of,
            tensors,
            collected,
            recipe.observer,
            recipe.kv_cache,
            rounded,
            self.state.key.matmul,
        )
        warning = quantized.kv.warning if quantized.kv else None
        inputs = {name: summary(statistics) for name, statistics in collected.activations.items()}
        schemes = [self.plan.schemes[linear] for linear in quantized.linears]
        log_event(
            _LOG,
            logging.INFO,
            "%(block)s: %(linears)s quantized (%(quantization)s) in %(seconds).1f s",
            block=block.name,
            linears=Count(len(quantized.linears), "linear"),
            quantization=", ".join(dict.fromkeys(describe(scheme) for scheme in schemes)) or "cache alone",
            overrides=len(quantized.overrides),
            seconds=round(time.perf_counter() - started, 3),
        )
        if plan.is_quantized(block):
            self.keep(
                block, self._stored(quantized), BlockRecord(inputs=inputs, warnings=(warning,) if warning else ())
            )
        return quantized

    def _stored(self, quantized: QuantizedBlock) -> QuantizedBlock:
        """What of a block does not follow from the checkpoint."""
        plan, meta = self.plan, torch.device("meta")
        linears = {
            name: replace(linear, qweight=linear.qweight.to(meta)) if name in plan.rounded else linear
            for name, linear in quantized.linears.items()
            if name in plan.calibrated
        }
        return replace(quantized, linears=linears)

    def keep(self, block: Block, quantized: QuantizedBlock, record: BlockRecord) -> None:
        """Write what becomes of a block's linears."""
        qweight = qweight_tensors(quantized, self.plan.spec, self.places)
        self.state.write_block(block.name, qweight, scale_tensors(block.name, quantized))
        self._record = record

    def finish_block(self, block: Block) -> None:
        """Save the results of a finished block and begin the next record."""
        self.state.finish_block(block.name, self._record)
        self._record = BlockRecord()

    def finish(self, out: Path, warnings: tuple[str, ...] = ()) -> Stats:
        """Write what concerns all blocks, and move the result to `out`; `warnings` are of the whole checkpoint."""
        key, state = self.state.key, self.state
        records = [record for block in self.plan.blocks if (record := state.record(block.name))]
        stats = Stats(
            fingerprint=key.fingerprint,
            checkpoint=key.checkpoint,
            compute=key.compute,
            matmul=key.matmul,
            image_policy=key.image_policy,
            samples=key.samples,
            inputs={name: entry for record in records for name, entry in record.inputs.items()},
            warnings=(*warnings, *(warning for record in records for warning in record.warnings)),
        )
        quantized = [block.name for block in self.plan.blocks if self.plan.is_quantized(block)]
        state.join_scales(quantized, state.result / SCALES)
        write_text(state.result / RECIPE, key.recipe.to_yaml())
        write_text(state.result / STATS, to_json(stats.model_dump(mode="json")))
        state.finish(out)
        return stats


def summary(statistics: ActivationStatistics) -> InputEntry:
    """The summary of an input's statistics for `stats.json`."""
    return InputEntry(
        tokens=int(statistics.rows),
        absmax=statistics.absmax,
        mean=float(statistics.channel_mean.mean()),
        median_channel_absmax=float(statistics.channel_absmax.median()),
    )


def _require_statistics(name: str, statistics: ActivationStatistics) -> None:
    if statistics.rows == 0:
        raise InputError(
            "No calibration sample reaches a linear that the recipe quantizes.",
            where=name,
            expected="samples with images for vision tower and projector",
            fix="add such samples, or exclude this linear from the recipe",
        )
    if statistics.absmax == 0:
        raise InputError(
            "All activations that enter a linear are zero: there is nothing to take a scale from.",
            where=name,
            found=f"{Count(int(statistics.rows), 'vector')} of zeros",
            fix="use other samples; if all of them give zeros, the checkpoint is damaged (a norm of zeros?), or "
            "exclude this linear from the recipe",
        )
