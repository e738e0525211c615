"""`calibrate`: a calibration apart from any bundle, in one run or in shards, for `build --calibrated`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig
from r1v_export.cpus import thread_count
from r1v_export.errors import UsageError
from r1v_export.files import explain_full_disk
from r1v_export.gpus import require_device
from r1v_export.pipeline.calibration import (
    calibration_options,
    calibration_set,
    chosen_recipe,
)
from r1v_export.pipeline.calibration_samples import calibration_examples
from r1v_export.pipeline.effort import resolved_calibration
from r1v_export.pipeline.planned_calibration import PlannedCalibration
from r1v_export.pipeline.precision import with_precision
from r1v_export.pipeline.ray_cluster import RayCluster, open_cluster
from r1v_export.pipeline.sharded_calibration import calibrate, remove_resume_folders
from r1v_export.pipeline.workers import ThisProcess, Workers, portable, read_paths
from r1v_export.progress import Progress
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.artifact.documents import STATS, checkpoint_fingerprint, read_recipe, read_stats
from r1v_export.quantization.calibration.blockwise_runner import compute_dtype
from r1v_export.quantization.calibration.calibrate import holds_result
from r1v_export.quantization.calibration.dataset import Shard, require_sample_for_each
from r1v_export.quantization.calibration.key import CalibrationKey
from r1v_export.quantization.calibration.matmul_precision import choose_matmul
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.calibration.resume import KEY, default_resume_folder
from r1v_export.quantization.calibration.shards import collect_shard as collect_statistics
from r1v_export.quantization.calibration.shards import find_shards, is_merged, merge, read_key, require_separable
from r1v_export.quantization.calibration_stats import Stats
from r1v_export.quantization.recipe import Recipe


@dataclass(frozen=True)
class Calibrated:
    """What is in the folder now. Of a shard, whose statistics are to be merged, there are no linears yet."""

    out: Path
    recipe: str
    samples: int
    shard: str | None
    linears: int
    warnings: tuple[str, ...]
    up_to_date: bool
    """Whether it was there before."""


def calibrate_alone(
    config: BuildConfig, out: Path, progress: Progress, *, offline: bool = False, ray: str | None = None
) -> Calibrated:
    """Write a calibration into `out`, by what of a build's config says how.

    After an interruption, the same call continues where it stopped.

    Args:
        ray: address of a Ray cluster, on which the parts of a calibration in shards run.

    Raises:
        R1VError: as `sharded_calibration.calibrate`, or `out` holds something else.
        CapabilityError: it does not fit into memory, this machine's or the smallest worker's, or the device is missing.
    """
    config = with_precision(config)
    chosen_recipe(config)  # refused before a checkpoint is downloaded
    checkpoint = _open(config, offline, elsewhere=ray is not None)
    asked, config = config, resolved_calibration(config, checkpoint)
    _require_samples(config, config.calibration.shards)
    recipe, resume_folder = chosen_recipe(config), default_resume_folder(out)
    finished = _may_hold_calibration(config, recipe, checkpoint, out)  # then neither memory nor a cluster is needed
    with explain_full_disk(out), _workers(None if finished else ray, config, checkpoint, out.absolute()) as workers:
        if not finished:
            worker_bytes = workers.memory_bytes if isinstance(workers, RayCluster) else None
            PlannedCalibration(asked, config, checkpoint, recipe, worker_bytes).require_possible()
        with progress.stage("calibration") as task:
            calibrate(config, recipe, checkpoint, out, resume_folder, task.report, workers)
            task.outcome = "up to date" if finished else None
    remove_resume_folders(resume_folder)
    return _calibrated(out, checkpoint, progress, finished)


def collect_shard(
    config: BuildConfig, shard: Shard, out: Path, progress: Progress, *, offline: bool = False
) -> Calibrated:
    """Write one shard's statistics into `out`, for `merge_shards`.

    Raises:
        UsageError: the calibration has a budget, or its recipe `propagate_error`: they cannot be split into shards.
        R1VError: as `calibrate_alone`.
    """
    config = with_precision(config)
    recipe = chosen_recipe(config)
    if recipe is None:
        raise UsageError(
            "A search within a budget measures whole models and cannot be split into shards.",
            found=f"--shard {shard} with --budget {config.budget}",
            fix="omit one of them",
        )
    require_separable(recipe, f"shard {shard}")  # before prompts are answered
    checkpoint = _open(config, offline)
    config = resolved_calibration(config, checkpoint)
    _require_samples(config, shard.count)
    recipe = chosen_recipe(config) or recipe
    finished = _may_hold_shard(config, recipe, checkpoint, shard, out)
    with explain_full_disk(out), progress.stage(f"shard {shard}") as task:
        samples = calibration_set(config, checkpoint, recipe, default_resume_folder(out), shard)
        collect_statistics(checkpoint, recipe, samples, out, calibration_options(config, checkpoint, None, task.report))
        task.outcome = "up to date" if finished else None
    remove_resume_folders(default_resume_folder(out))
    return Calibrated(out, recipe.name, len(samples.samples), str(shard), 0, (), finished)


def merge_shards(
    config: BuildConfig,
    folders: Sequence[Path],
    out: Path,
    progress: Progress,
    *,
    offline: bool = False,
) -> Calibrated:
    """Write the calibration of all shards into `out`.

    Args:
        config: names the model and the device; everything else is as the shards say.
        folders: shards, or folders that hold them.

    Raises:
        UsageError: a shard is missing or there twice, they are not of one calibration, or `out` holds something else.
        BundleError: a shard is unfinished, damaged or of another checkpoint.
        CapabilityError: this machine lacks the device.
    """
    checkpoint, shards = _open(config, offline), find_shards(folders)
    finished = is_merged(checkpoint, shards, out)  # or refused, before a stage is announced
    with explain_full_disk(out), progress.stage("merge") as task:
        merge(checkpoint, shards, out, calibration_options(config, checkpoint, None, task.report))
        task.outcome = "up to date" if finished else None
    return _calibrated(out, checkpoint, progress, finished)


def _may_hold_calibration(config: BuildConfig, recipe: Recipe | None, checkpoint: Checkpoint, out: Path) -> bool:
    """Whether `out` holds the calibration that is asked for, as far as is known before a sample is read, whose images
    and answers decide the rest; a stage need not be announced to be refused. False where it is empty or not there.

    Args:
        recipe: None where a budget has yet to find it, whose search is not repeated.

    Raises:
        UsageError: it holds anything else.
        BundleError: what it holds is damaged.
    """

    def is_asked_for() -> bool:
        if recipe is None or not (out / STATS).is_file():
            return False
        return read_recipe(out) == recipe and _agrees(read_stats(out), config, checkpoint, Shard())

    return holds_result(out, is_asked_for)


def _may_hold_shard(config: BuildConfig, recipe: Recipe, checkpoint: Checkpoint, shard: Shard, out: Path) -> bool:
    """The same of a shard."""

    def is_asked_for() -> bool:
        if not (out / KEY).is_file():
            return False
        key = read_key(out)
        return (key.recipe, key.shard) == (recipe, str(shard)) and _agrees(key, config, checkpoint, shard)

    return holds_result(out, is_asked_for)


def _agrees(found: Stats | CalibrationKey, config: BuildConfig, checkpoint: Checkpoint, shard: Shard) -> bool:
    """Whether what is found was calibrated as is asked for, on samples of the same names."""
    names = [example.name for example in calibration_examples(config, checkpoint)]
    asked = (
        checkpoint_fingerprint(checkpoint),
        compute_dtype(checkpoint, config.device),
        choose_matmul(config.calibration.matmul_precision, checkpoint, config.device),
        config.image_policy,
        names[shard.index :: shard.count],
    )
    sampled = [sample.name for sample in found.samples]
    return (found.checkpoint, found.compute, found.matmul, found.image_policy, sampled) == asked


@contextmanager
def _workers(ray: str | None, config: BuildConfig, checkpoint: Checkpoint, out: Path) -> Iterator[Workers]:
    """Where the parts of a calibration run."""
    if ray is None:
        yield ThisProcess()
        return
    reads = read_paths(portable(config, checkpoint))
    with open_cluster(ray, out.with_name(f".{out.name}.ray"), reads, config.device) as cluster:
        yield cluster


def _require_samples(config: BuildConfig, shards: int) -> None:
    """Refuse a calibration set that is not there, and more shards than samples, before a stage is announced.

    Raises:
        InputError: it is so. Whether the set has as many samples as were asked for is found out when it is read.
    """
    most = config.calibration.samples or shards
    # One for each shard decides; a set may be far larger.
    require_sample_for_each(shards, len(read_examples(config.calibration.data, min(most, shards), config.image_policy)))


def _open(config: BuildConfig, offline: bool, *, elsewhere: bool = False) -> Checkpoint:
    """The checkpoint to calibrate, on this machine unless workers of a cluster do."""
    if not elsewhere:
        require_device(config.device)
    torch.set_num_threads(thread_count().count)
    checkpoint = Checkpoint.open(config.model, revision=config.revision, offline=offline)
    if checkpoint.quantized is not None:
        raise UsageError(
            "The checkpoint is quantized already: there is nothing to calibrate.",
            where=checkpoint.folder,
            found=checkpoint.quantized.format.method,
            fix="build it directly: r1v-export build MODEL",
        )
    return checkpoint


def _calibrated(out: Path, checkpoint: Checkpoint, progress: Progress, up_to_date: bool) -> Calibrated:
    artifact = Artifact.open(out, checkpoint)
    stats = artifact.stats
    for warning in stats.warnings:
        progress.note(f"warning: {warning}")
    samples, linears = len(stats.samples), len(artifact.schemes)
    return Calibrated(out, artifact.recipe.name, samples, None, linears, stats.warnings, up_to_date)
