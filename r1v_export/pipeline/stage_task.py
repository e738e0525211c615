"""A stage made by another process, for a build that holds the bundle's lock and takes up what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig
from r1v_export.errors import CapabilityError
from r1v_export.hashed_files import record_hashes
from r1v_export.manifest import FileEntry, StageEntry
from r1v_export.pipeline.report_provenance import BuildLabel
from r1v_export.pipeline.stage import Stage, StageInputs, fingerprint
from r1v_export.pipeline.stages import Build
from r1v_export.pipeline.workers import Task, portable
from r1v_export.pipeline.workspace import Workspace, stage_files
from r1v_export.progress import ProgressCallback


def stage_task(job: Build, stage: Stage, sources: Mapping[str, str], finished: Mapping[str, StageEntry]) -> Task:
    """The task that makes a stage; its result is what `Workspace.commit` takes.

    Args:
        sources, finished: of the stage's fingerprint.
    """
    config, out = portable(job.config, job.checkpoint), job.out.absolute()
    digest = fingerprint(stage, sources, finished)
    arguments = (config, out, stage.name, digest, dict(sources), dict(finished), job.label, dict(job.gates))
    return Task(stage.name, make_stage, arguments, Workspace(out).work / stage.name)


def make_stage(
    config: BuildConfig,
    out: Path,
    name: str,
    digest: str,
    sources: Mapping[str, str],
    finished: Mapping[str, StageEntry],
    label: BuildLabel,
    gates: Mapping[str, Literal["whole", "streamed"]],
    *,
    on_progress: ProgressCallback,
) -> dict[str, FileEntry]:
    """Write a stage's files into its folder of the workspace.

    Args:
        digest: fingerprint of the stage, where the build runs.
        label, gates: of the build that this is a part of. Every worker compares as that chose: a larger one may not
            choose by its own memory, or the bundle would depend on where it was built.

    Raises:
        CapabilityError: the stage has another fingerprint here.
        R1VError: as the stage.
    """
    job = Build(config, Checkpoint.open(config.model, offline=True), out, parent_label=label, gates=dict(gates))
    stage = next(stage for stage in job.stages() if stage.name == name)
    if fingerprint(stage, sources, finished) != digest:
        raise CapabilityError(
            "A worker has other versions of tools and would build something else.",
            where=name,
            fix="install the same versions on every worker, those of the targets included",
        )
    # A worker that was given up may write here still: nothing that lies here is gone on with.
    folder = Workspace(out).begin(name, digest, resume=False).folder
    with record_hashes() as hashes:
        stage.make(folder, StageInputs(sources, finished), on_progress)
    return stage_files(folder, hashes)
