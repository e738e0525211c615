"""`build`: run the stages that are not done, then write the manifest."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig
from r1v_export.count import Count
from r1v_export.cpus import thread_count
from r1v_export.errors import CapabilityError, R1VError
from r1v_export.files import explain_full_disk, require_no_file, require_writable
from r1v_export.manifest import MANIFEST, PASSED, WORK_FOLDER, FileEntry, Manifest, SourceEntry, StageEntry
from r1v_export.pipeline import provenance
from r1v_export.pipeline.budget import require_attainable_budget
from r1v_export.pipeline.calibration import chosen_recipe
from r1v_export.pipeline.estimate import obstacles, refuse_impossible
from r1v_export.pipeline.gate_stage import decoder_verdicts, image_verdicts
from r1v_export.pipeline.imported import IMPORTED_PRECISIONS, for_checkpoint
from r1v_export.pipeline.precision import with_precision
from r1v_export.pipeline.ray_cluster import ClusterSize, ask_cluster
from r1v_export.pipeline.run_stages import finished_stages, run_on_ray, run_stages
from r1v_export.pipeline.sources import Sources
from r1v_export.pipeline.stage import Needs, Stage
from r1v_export.pipeline.stages import CALIBRATION_STAGE, Build
from r1v_export.pipeline.workers import portable, read_paths
from r1v_export.pipeline.workspace import CHOOSE_ANOTHER, Workspace, open_workspace
from r1v_export.progress import Progress, size
from r1v_export.targets import registry
from r1v_export.version import VERSION


@dataclass(frozen=True)
class Built:
    """What a build did: the stages that it ran, of all that there are."""

    out: Path
    manifest: Manifest
    ran: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Total size of the bundle's files in bytes."""
        return sum(entry.size for entry in self.manifest.files.values())


@dataclass(frozen=True)
class PlannedStage:
    """One line of a plan; size and time are estimates, and 0 for what is done."""

    name: str
    done: bool
    size_bytes: int
    seconds: float
    memory_bytes: int = 0
    """0 for less than a gigabyte."""
    scratch_bytes: int = 0
    """Disk for files that are gone when the stage ends."""
    note: str = ""
    """How it will run."""
    obstacle: CapabilityError | None = None
    """Why it cannot run here."""


def build(
    config: BuildConfig,
    out: Path,
    *,
    force: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
    ray: str | None = None,
) -> Built:
    """Make or complete the bundle in `out`.

    All that can be known beforehand is checked before the first weight is read. Killed at any moment, a build with
    the same config resumes, and ends in the same bytes.

    Args:
        force: run every stage, also those that are done.
        offline: do not ask the network for a hub model.
        ray: address of a Ray cluster that runs stages, and the shards of a calibration, as its tasks. The bundle is
            the same without.

    Raises:
        R1VError: the checkpoint, the target, the disk or the output folder do not do; parity is not reached.
    """
    job = _open(config, out, offline)
    # What workers have is asked once there is a workspace; until then their memory stops nothing.
    stages = (job if ray is None else replace(job, worker_bytes=sys.maxsize, gates={})).stages()
    if not (out / WORK_FOLDER).exists() and not (out / MANIFEST).exists():
        require_writable(out, CHOOSE_ANOTHER)
        refuse_impossible(out, stages)  # before anything is hashed
    progress = progress or Progress(quiet=True)
    progress.stages = len(stages) + 1
    for note in job.checkpoint.notes:
        progress.note(note)
    with explain_full_disk(out), open_workspace(out) as workspace:
        try:
            with Sources(job.source_files(), workspace.hashes, progress) as sources:
                if ray is None:
                    finished, ran = run_stages(stages, sources, workspace, progress, force)
                else:
                    finished, ran = run_on_ray(ray, job, sources, workspace, progress, force)
                sources.require_unchanged()
        finally:
            workspace.hashes.save()  # of the files that could be read, so that another try begins with the others
        manifest = _manifest(job, sources.hashed(), finished)
        if manifest == workspace.manifest:
            workspace.clear()
        else:
            workspace.finish(manifest)
    return Built(out, manifest, tuple(ran))


def plan(
    config: BuildConfig, out: Path, *, force: bool = False, offline: bool = False, ray: str | None = None
) -> list[PlannedStage]:
    """What `build` would do, changing nothing, and what this machine lacks for it. Sources are hashed only where there
    is something to compare with.

    Args:
        ray: address of a Ray cluster, on whose smallest worker each task has to fit.
    """
    require_no_file(out, CHOOSE_ANOTHER)
    job = _open(config, out, offline, planning=True)
    cluster = None
    if ray is not None:
        cluster = ask_cluster(ray, read_paths(portable(job.config, job.checkpoint)), job.config.device)
        job = replace(job, worker_bytes=cluster.memory_bytes, gates={})
    stages, workspace = job.stages(), Workspace(out)
    finished: Mapping[str, StageEntry] = {}
    if workspace.has_stages and not force:
        with Sources(job.source_files(), workspace.hashes, Progress(quiet=True)) as sources:
            finished = finished_stages(stages, sources, workspace)
    rows = []
    to_run = [stage for stage in stages if stage.name not in finished]
    lacking: dict[str, CapabilityError] = {}
    for stage, obstacle in obstacles(out, to_run):
        lacking.setdefault(stage.name, obstacle)
    for stage in stages:
        if stage.name in finished:
            rows.append(PlannedStage(stage.name, True, 0, 0.0))
            continue
        needs = stage.needs()
        rows.append(
            PlannedStage(
                stage.name,
                False,
                stage.size_bytes,
                stage.seconds(),
                needs.memory_bytes,
                needs.scratch_bytes,
                _note(job, stage, needs, cluster),
                lacking.get(stage.name),
            )
        )
    return rows


def _note(job: Build, stage: Stage, needs: Needs, cluster: ClusterSize | None) -> str:
    """How a stage will run: on a cluster, where memory counts, also on how many workers, and what they have."""
    shards = job.config.calibration.shards if job.calibrates_on_workers and stage.name == CALIBRATION_STAGE else 0
    if cluster is None or not needs.memory_bytes or not (stage.is_task or shards):
        return needs.note
    parts = f"{Count(shards, 'part')}, each" if shards else "a task"
    note = (
        f"{parts} on one of {Count(cluster.workers, 'worker')}, with {size(cluster.memory_bytes)} free on the smallest"
    )
    return f"{needs.note}; {note}" if needs.note else note


def _open(config: BuildConfig, out: Path, offline: bool, *, planning: bool = False) -> Build:
    """Refuse what cannot be built before a checkpoint is downloaded, and the checkpoint before anything is written.

    Args:
        planning: let targets pass that this machine cannot build; `Build.lacking` says why.
    """
    torch.set_num_threads(thread_count().count)
    config = registry.resolved(with_precision(config))
    with suppress(CapabilityError) if planning else nullcontext():
        _check_before_download(config)
    chosen_recipe(config)
    checkpoint = Checkpoint.open(config.model, revision=config.revision, offline=offline)
    config = for_checkpoint(config, checkpoint)
    require_attainable_budget(config, checkpoint)
    lacking = {}
    for target in config.targets:
        try:
            registry.get_target(target).check(config)
        except CapabilityError as error:
            if not planning:
                raise
            lacking[target] = error
    return Build(config, checkpoint, out, lacking=lacking)


def _check_before_download(config: BuildConfig) -> None:
    """Refuse what no checkpoint makes possible: one that is quantized brings its precision where none is asked for."""
    asked = "precision" in config.model_fields_set
    refusals = []
    for precision in (config.precision,) if asked else (config.precision, *IMPORTED_PRECISIONS):
        try:
            return _check_targets(config.model_copy(update={"precision": precision}))
        except R1VError as error:
            refusals.append(error)
    raise refusals[0]


def _check_targets(config: BuildConfig) -> None:
    for target in config.targets:
        registry.get_target(target).check(config)


def _manifest(job: Build, sources: Mapping[str, FileEntry], stages: Mapping[str, StageEntry]) -> Manifest:
    config, source = job.saved_config, job.checkpoint.source
    of_targets = (tool for target in config.targets for tool in registry.tools(target))
    tools = (*provenance.TRACING_TOOLS, *of_targets, *provenance.INPUT_TOOLS)
    return Manifest(
        producer=f"r1v-export {VERSION}",
        command=config.command,
        source=SourceEntry(kind=source.kind, name=config.model, revision=source.revision, files=dict(sources)),
        precision=config.precision,
        parity={target: job.unchecked(target) or PASSED for target in config.targets},
        image_parity=image_verdicts(job),
        decoder_parity=decoder_verdicts(job),
        device=provenance.device_name(config.device),
        tools=provenance.tool_versions(tools),
        stages=dict(stages),
    )
