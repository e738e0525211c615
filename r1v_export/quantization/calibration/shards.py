"""Distributed calibration: several runs collect statistics of a part of the samples each, and one merges them.

A shard is a folder with `key.json` and `statistics/BLOCK.safetensors`. Maxima, counts and histograms of the merged
shards are those of a single run bit for bit; sums (means, and the Gram matrices of AWQ and GPTQ) up to the rounding of
another order of addition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.tensor_file import read_header
from r1v_export.errors import BundleError, CheckpointError, UsageError
from r1v_export.files import read_regular_bytes
from r1v_export.manifest import to_json
from r1v_export.quantization.artifact.documents import RECIPE, STATS, checkpoint_fingerprint, read_stats
from r1v_export.quantization.calibration.blocks import Block, materialize, stored_tensors, tensors_of
from r1v_export.quantization.calibration.blockwise_runner import (
    DEFAULT_OPTIONS,
    BlockwiseRunner,
    CalibrationOptions,
    compute_dtype,
)
from r1v_export.quantization.calibration.calibrate import Quantization, holds_result, is_done, make_plan
from r1v_export.quantization.calibration.dataset import CalibrationSet, Shard
from r1v_export.quantization.calibration.key import CalibrationKey, make_key
from r1v_export.quantization.calibration.plan import CalibrationPlan
from r1v_export.quantization.calibration.resume import KEY, BlockRecord, ResumeState, open_resume_state, write_text
from r1v_export.quantization.calibration_stats import Stats
from r1v_export.quantization.recipe import Recipe
from r1v_export.quantization.statistics.activation_statistics import (
    BlockStatistics,
    from_tensors,
    merge_blocks,
    to_tensors,
)
from r1v_export.strict import parse_json

STATISTICS = "statistics"
_AGAIN = "run this shard again"
_SHARED = {
    "producer": "the version of r1v-export",
    "checkpoint": "the checkpoint",
    "recipe": "the recipe",
    "compute": "the dtype of the device",
    "matmul": "the precision of products",
    "data": "the calibration set",
    "image_policy": "the image policy",
}
"""What all shards of a calibration have in common, by the key's field."""


def require_separable(recipe: Recipe, found: str) -> None:
    """Check that statistics for a recipe can be collected in shards.

    Args:
        found: which shards were asked for.

    Raises:
        UsageError: the recipe has `propagate_error`.
    """
    if recipe.propagate_error:
        raise UsageError(
            "A recipe with propagate_error cannot be calibrated in shards: a block's inputs are the outputs of the "
            "blocks before it, quantized from the statistics of all samples.",
            where=f"recipe {recipe.name}",
            found=found,
            fix="calibrate in one run, or set propagate_error: false",
        )


def collect_shard(
    checkpoint: Checkpoint,
    recipe: Recipe,
    calibration: CalibrationSet,
    out: Path,
    options: CalibrationOptions = DEFAULT_OPTIONS,
) -> None:
    """Collect the statistics of one shard of a calibration set, for `merge`. Arguments and errors are those of
    `calibrate.calibrate`.

    Raises:
        UsageError: also where the recipe has `propagate_error`.

    Takes disk for the statistics, and for AWQ and GPTQ for in-features squared times 4 bytes of every input: about 4 GB
    for each layer of a 32B model.
    """
    require_separable(recipe, f"shard {calibration.shard}")
    compute = compute_dtype(checkpoint, options.device)
    key = make_key(checkpoint_fingerprint(checkpoint), recipe, compute, options.matmul, calibration)
    plan = make_plan(checkpoint, recipe)
    done, unfinished = _is_done(key, out), open_resume_state(out, key, options.resume_folder)
    if done:
        unfinished.clear()
        return
    names = [block.name for block in plan.blocks]
    finished = next((i for i, name in enumerate(names) if unfinished.record(name) is None), len(names))

    def keep(block: Block, tensors: Mapping[str, Tensor], statistics: BlockStatistics) -> None:
        if statistics.activations:
            unfinished.save(unfinished.result / STATISTICS / f"{block.name}.safetensors", to_tensors(statistics))

    saving = replace(options.saving, share=options.saving.share / calibration.shard.count)
    options = replace(options, saving=saving)
    runner = BlockwiseRunner(checkpoint, plan, calibration.samples, unfinished.activations, options)
    runner.run(finished, keep, lambda block: unfinished.finish_block(block.name, BlockRecord()), rounds=False)
    write_text(unfinished.result / KEY, to_json(key.model_dump(mode="json")))
    unfinished.finish(out)


def merge(
    checkpoint: Checkpoint,
    shards: Sequence[Path],
    out: Path,
    options: CalibrationOptions = DEFAULT_OPTIONS,
) -> Stats:
    """Quantize a checkpoint from the statistics of all shards of a calibration set.

    Args:
        shards: folders of `collect_shard`, in any order; one named twice counts once, a copy of one is refused.
        out, options: as in `calibrate.calibrate`.

    Raises:
        UsageError: a shard is missing or there twice, or they are not of one calibration.
        BundleError: a shard is damaged, or of another checkpoint.
        InputError: as in `calibrate.calibrate`.
    """
    merged = _Merge(checkpoint, shards, options)
    done, unfinished = is_done(merged.key, out), merged.resume_state(out)
    if done:
        unfinished.clear()
        return read_stats(out)
    quantization = Quantization(merged.plan, unfinished, options.places)
    merged.quantize(quantization, range(quantization.finished, len(merged.plan.blocks)))
    return quantization.finish(out)


def is_merged(
    checkpoint: Checkpoint, shards: Sequence[Path], out: Path, options: CalibrationOptions = DEFAULT_OPTIONS
) -> bool:
    """Whether `out` holds the result of `merge` already; checks what `merge` checks before it computes.

    Arguments and errors are those of `merge`.
    """
    return is_done(_Merge(checkpoint, shards, options).key, out)


def begin_merge(
    checkpoint: Checkpoint, shards: Sequence[Path], out: Path, options: CalibrationOptions = DEFAULT_OPTIONS
) -> None:
    """Prepare the resume folder of `merge` for `quantize_part`. Arguments and errors are those of `merge`."""
    _Merge(checkpoint, shards, options).resume_state(out)


def quantize_part(
    checkpoint: Checkpoint, shards: Sequence[Path], out: Path, part: Shard, options: CalibrationOptions
) -> None:
    """Quantize every `part.count`-th block of `merge`, from the one at `part.index` on, and keep it for `merge`.

    Parts can run at the same time, after `begin_merge`: what becomes of a block depends on no other. Arguments and
    errors are those of `merge`.
    """
    merged = _Merge(checkpoint, shards, options)
    blocks = range(part.index, len(merged.plan.blocks), part.count)
    merged.quantize(Quantization(merged.plan, merged.resume_state(out), options.places), blocks)


class _Merge:
    """The shards of one calibration, in their order, and how their blocks are quantized."""

    def __init__(self, checkpoint: Checkpoint, shards: Sequence[Path], options: CalibrationOptions) -> None:
        shards = sorted(dict.fromkeys(folder.resolve() for folder in shards))
        keys = {folder: read_key(folder) for folder in shards}
        self.key = _join_keys(keys)
        if self.key.checkpoint != checkpoint_fingerprint(checkpoint):
            raise BundleError(
                "These are the statistics of another checkpoint.",
                where=shards[0],
                fix="name the checkpoint that the shards were calibrated on",
            )
        self.checkpoint, self.options = checkpoint, options
        self.plan = make_plan(checkpoint, self.key.recipe)
        self.folders = sorted(shards, key=lambda folder: Shard.parse(keys[folder].shard).index)

    def resume_state(self, out: Path) -> ResumeState:
        """The unfinished merge."""
        return open_resume_state(out, self.key, self.options.resume_folder)

    def quantize(self, quantization: Quantization, indices: Sequence[int]) -> None:
        """Quantize those of some blocks that are not finished."""
        plan, state = self.plan, quantization.state
        left = [index for index in indices if state.record(plan.blocks[index].name) is None]
        costs = [plan.rounding_cost(index) for index in left]
        dtype, device = getattr(torch, self.key.compute), torch.device(self.options.device)
        for number, index in enumerate(left):
            block = plan.blocks[index]
            if plan.is_quantized(block):
                statistics = _merged(plan, block, self.folders)
                if plan.is_collected(block):
                    module = materialize(block, self.checkpoint, dtype, device, self.key.matmul)
                    tensors = tensors_of(block, module)
                else:
                    tensors = stored_tensors(block, self.checkpoint)
                quantization.quantize(block, tensors, statistics)
            quantization.finish_block(block)
            self.options.on_progress(sum(costs[: number + 1]), sum(costs))


def find_shards(folders: Sequence[Path]) -> list[Path]:
    """The shards among folders and, where a folder is none itself, among those directly in it."""
    found: list[Path] = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.glob(f"*/{KEY}")) if not (folder / KEY).exists() else []
        # An unfinished shard's resume folder holds a key too.
        found += [path for path in inside if not path.name.startswith(".")] or [folder]
    return found


def _is_done(key: CalibrationKey, out: Path) -> bool:
    return holds_result(out, lambda: (out / KEY).is_file() and read_key(out) == key)


def read_key(folder: Path) -> CalibrationKey:
    """What a shard is of.

    Raises:
        BundleError: there is none in the folder, or its key is damaged.
    """
    path = folder / KEY
    try:
        text = read_regular_bytes(path)
    except OSError as error:
        raise _no_shard(folder, error) from error
    key = parse_json(CalibrationKey, text, BundleError, "The key of a shard is damaged", where=path, fix=_AGAIN)
    try:
        Shard.parse(key.shard)
    except UsageError as error:
        raise BundleError("The key of a shard is damaged.", where=path, found=error.found, fix=_AGAIN) from error
    return key


def _no_shard(folder: Path, error: OSError) -> BundleError:
    """What a folder is that has no key that can be read."""
    expected = "a folder that was written with --shard, or one that holds such folders"
    what, found = "There is no shard of a calibration here.", error.strerror
    fix = "correct --merge; an interrupted shard has to be run to its end first"
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such path"
    elif (folder / RECIPE).exists() and (folder / STATS).exists():
        what, found = "This is a finished calibration and no shard of one.", f"{RECIPE} and {STATS}"
        fix = f"build with it: r1v-export build MODEL --calibrated {folder}"
    elif isinstance(error, FileNotFoundError):
        found = "a folder with other files" if any(folder.iterdir()) else "an empty folder"
    return BundleError(what, where=folder, expected=expected, found=found, fix=fix)


def _join_keys(keys: dict[Path, CalibrationKey]) -> CalibrationKey:
    """The key of the calibration that the shards are parts of."""
    first = next(iter(keys.values()))
    for folder, key in keys.items():
        for field, name in _SHARED.items():
            if getattr(key, field) != getattr(first, field):
                what = f"The shards are not of one calibration: {name} differs."
                raise UsageError(what, where=folder, fix="run all shards in the same way")
    shards = sorted(Shard.parse(key.shard) for key in keys.values())
    if shards != [Shard(index, shards[0].count) for index in range(shards[0].count)]:
        raise UsageError(
            "The shards of a calibration are incomplete or repeated.",
            expected=", ".join(str(Shard(index, shards[0].count)) for index in range(shards[0].count)),
            found=", ".join(map(str, shards)),
            fix="run those that are missing; an interrupted one continues where it stopped",
        )
    by_shard = [key.samples for key in sorted(keys.values(), key=lambda key: Shard.parse(key.shard))]
    total = sum(map(len, by_shard))
    if [len(samples) for samples in by_shard] != [len(range(i, total, len(by_shard))) for i in range(len(by_shard))]:
        raise UsageError(
            "The shards were cut from calibration sets of different sizes.", fix="run all shards on one set"
        )
    samples = tuple(by_shard[index % len(by_shard)][index // len(by_shard)] for index in range(total))
    return first.model_copy(update={"shard": str(Shard()), "samples": samples})


def _merged(plan: CalibrationPlan, block: Block, folders: Sequence[Path]) -> BlockStatistics:
    if not plan.is_collected(block):
        return BlockStatistics({}, {})
    return reduce(merge_blocks, (_read_statistics(folder, block) for folder in folders))


def _read_statistics(folder: Path, block: Block) -> BlockStatistics:
    path = folder / STATISTICS / f"{block.name}.safetensors"
    try:
        return from_tensors({name: stored.read() for name, stored in read_header(path).items()})
    except (CheckpointError, ValueError) as error:
        raise BundleError("The statistics of a shard are damaged.", where=path, found=error, fix=_AGAIN) from error
