"""A calibration in one run, or in parts: shards of the samples, then the blocks that are quantized from their
statistics. The parts are tasks, which `workers` does here or on other machines.

    RESUME-shards/DIGEST/1-of-4/   statistics of a shard
    RESUME-shards/merge/           resume folder of the merge
    RESUME-responses/              see `kept_responses`

The shards are merged in their order, so the result depends on how many there are and not on where or when they ran.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig
from r1v_export.manifest import to_json
from r1v_export.pipeline.budget import calibrate_within_budget
from r1v_export.pipeline.calibration import (
    calibration_options,
    calibration_set,
    copy_finished,
    data_digest,
    responses_folder,
)
from r1v_export.pipeline.workers import Task, ThisProcess, Workers, portable
from r1v_export.progress import ProgressCallback, ignore_progress, subrange
from r1v_export.quantization.artifact.documents import checkpoint_fingerprint
from r1v_export.quantization.calibration.blockwise_runner import compute_dtype
from r1v_export.quantization.calibration.calibrate import calibrate as run_calibration
from r1v_export.quantization.calibration.calibrate import is_done
from r1v_export.quantization.calibration.dataset import Shard
from r1v_export.quantization.calibration.key import make_key
from r1v_export.quantization.calibration.resume import default_resume_folder
from r1v_export.quantization.calibration.shards import begin_merge, collect_shard, merge, quantize_part
from r1v_export.quantization.recipe import Recipe
from r1v_export.version import VERSION

THIS_PROCESS = ThisProcess()

_COLLECTING = 0.8
"""Share of the time that statistics take, roughly."""


def calibrate(
    config: BuildConfig,
    recipe: Recipe | None,
    checkpoint: Checkpoint,
    out: Path,
    resume_folder: Path,
    on_progress: ProgressCallback,
    workers: Workers = THIS_PROCESS,
) -> None:
    """Write the calibration artifact into `out`.

    Args:
        config: of `resolved_calibration`, so that every worker calibrates in the same way.
        recipe: `chosen_recipe`.
        resume_folder: keeps what is finished, for the same call after an interruption; the caller removes it, by
            `remove_resume_folders`, once `out` is safe.
        workers: do the parts of a calibration in shards; they see all folders under the same paths.

    Raises:
        InputError: the calibration data cannot be used.
        CheckpointError: a weight is not finite.
        UsageError: the budget cannot be met.
        BundleError: a finished calibration is damaged, or another checkpoint's.
    """
    if config.calibration.artifact is not None:
        copy_finished(Path(config.calibration.artifact), checkpoint, out)
        return
    options = calibration_options(config, checkpoint, resume_folder, on_progress)
    if recipe is None:
        calibrate_within_budget(config, checkpoint, out, options)
    elif config.calibration.shards == 1:
        run_calibration(checkpoint, recipe, calibration_set(config, checkpoint, recipe, resume_folder), out, options)
    elif not _is_done(config, recipe, checkpoint, out, resume_folder):
        out, work = out.absolute(), _shards_work(resume_folder.absolute())
        _calibrate_in_shards(workers, portable(config, checkpoint), recipe, checkpoint, out, work, on_progress)


def remove_resume_folders(resume_folder: Path) -> None:
    """Remove all that calibrations of this resume folder have kept."""
    for folder in (resume_folder, _shards_work(resume_folder), responses_folder(resume_folder)):
        shutil.rmtree(folder, ignore_errors=True)


def _shards_work(resume_folder: Path) -> Path:
    return resume_folder.with_name(f"{resume_folder.name}-shards")


def _is_done(config: BuildConfig, recipe: Recipe, checkpoint: Checkpoint, out: Path, resume_folder: Path) -> bool:
    if not out.exists():
        return False
    samples = calibration_set(config, checkpoint, recipe, resume_folder)
    options = calibration_options(config, checkpoint, None, ignore_progress)
    compute = compute_dtype(checkpoint, options.device)
    return is_done(make_key(checkpoint_fingerprint(checkpoint), recipe, compute, options.matmul, samples), out)


def _calibrate_in_shards(
    workers: Workers,
    config: BuildConfig,
    recipe: Recipe,
    checkpoint: Checkpoint,
    out: Path,
    work: Path,
    on_progress: ProgressCallback,
) -> None:
    count = config.calibration.shards
    parts = [Shard(index, count) for index in range(count)]
    folder, merging = _shards_folder(config, recipe, checkpoint, work), work / "merge"
    shards = [folder / f"{part.index + 1}-of-{count}" for part in parts]
    collecting = [
        Task(f"shard {part}", collect, (config, recipe, part, shard), shard)
        for part, shard in zip(parts, shards, strict=True)
    ]
    workers.run(collecting, subrange(on_progress, 0.0, _COLLECTING))
    options = calibration_options(config, checkpoint, merging, subrange(on_progress, _COLLECTING, 1.0))
    begin_merge(checkpoint, shards, out, options)
    quantizing = [
        Task(f"blocks {part}", quantize, (config, shards, part, out, merging), work / f"blocks-{part.index + 1}")
        for part in parts
    ]
    workers.run(quantizing, subrange(on_progress, _COLLECTING, 1.0))
    merge(checkpoint, shards, out, options)


def collect(config: BuildConfig, recipe: Recipe, shard: Shard, out: Path, *, on_progress: ProgressCallback) -> None:
    """Collect the statistics of one shard: a task."""
    checkpoint = Checkpoint.open(config.model, offline=True)
    samples = calibration_set(config, checkpoint, recipe, default_resume_folder(out), shard)
    collect_shard(checkpoint, recipe, samples, out, calibration_options(config, checkpoint, None, on_progress))


def quantize(
    config: BuildConfig, shards: list[Path], part: Shard, out: Path, merging: Path, *, on_progress: ProgressCallback
) -> None:
    """Quantize one part of the blocks: a task."""
    checkpoint = Checkpoint.open(config.model, offline=True)
    quantize_part(checkpoint, shards, out, part, calibration_options(config, checkpoint, merging, on_progress))


def _shards_folder(config: BuildConfig, recipe: Recipe, checkpoint: Checkpoint, work: Path) -> Path:
    """Where the shards of this calibration lie; those of another one, which an earlier build left, are removed."""
    decides = {
        "producer": VERSION,
        "checkpoint": checkpoint_fingerprint(checkpoint),
        "recipe": recipe.model_dump(mode="json"),
        "data": data_digest(config.calibration.data),
        "samples": config.calibration.samples,
        "effort": config.calibration.effort,
        "matmul": config.calibration.matmul_precision,
        "image_policy": config.image_policy,
        "device": config.device,
    }
    folder = work / hashlib.sha256(to_json(decides).encode()).hexdigest()[:16]
    if not folder.exists():
        shutil.rmtree(work, ignore_errors=True)
    return folder
