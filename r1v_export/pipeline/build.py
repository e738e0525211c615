"""`build`: run the stages that are not done, then write the manifest."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig
from r1v_export.errors import CheckpointError, ParityError, R1VError
from r1v_export.files import explain_full_disk
from r1v_export.hashed_files import record_hashes
from r1v_export.log_event import log_event
from r1v_export.manifest import PASSED, FileEntry, Manifest, SourceEntry, StageEntry, hash_files
from r1v_export.pipeline import provenance
from r1v_export.pipeline.calibration import chosen_recipe
from r1v_export.pipeline.estimate import HASH_BYTES_PER_S, require_disk
from r1v_export.pipeline.imported import IMPORTED_PRECISIONS, for_checkpoint
from r1v_export.pipeline.stage import Stage, fingerprint
from r1v_export.pipeline.stages import Build
from r1v_export.pipeline.workspace import HashCache, Workspace, open_workspace
from r1v_export.progress import Progress, size
from r1v_export.targets import registry
from r1v_export.version import VERSION

HASHING = "checkpoint-hash"

_LOG = logging.getLogger(__name__)


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


def build(
    config: BuildConfig, out: Path, *, force: bool = False, offline: bool = False, progress: Progress | None = None
) -> Built:
    """Make or complete the bundle in `out`.

    All that can be known beforehand is checked before the first weight is read. Killed at any moment, a build with
    the same config resumes, and ends in the same bytes.

    Args:
        force: run every stage, also those that are done.
        offline: do not ask the network for a hub model.

    Raises:
        R1VError: the checkpoint, the target, the disk or the output folder do not do; parity is not reached.
    """
    job = _open(config, out, offline)
    stages = job.stages()
    progress = progress or Progress(quiet=True)
    progress.stages = len(stages) + 1
    for note in job.checkpoint.notes:
        progress.note(note)
    with explain_full_disk(out), open_workspace(out) as workspace:
        try:
            sources = _hash_sources(job, workspace.hashes, progress)
        finally:
            workspace.hashes.save()  # of the files that could be read, so that another try begins with the next one
        finished, ran = run_stages(stages, sources, workspace, progress, force)
        _require_unchanged(job, sources, workspace.hashes)
        manifest = _manifest(job, sources, finished)
        if manifest == workspace.manifest:
            workspace.clear()
        else:
            workspace.finish(manifest)
    return Built(out, manifest, tuple(ran))


def plan(config: BuildConfig, out: Path, *, force: bool = False, offline: bool = False) -> list[PlannedStage]:
    """What `build` would do, changing nothing. Sources are hashed only where there is something to compare with."""
    job = _open(config, out, offline)
    stages, workspace = job.stages(), Workspace(out)
    paths = job.source_files().values()
    finished: Mapping[str, StageEntry] = {}
    if workspace.has_stages and not force:
        finished = finished_stages(stages, _hash_sources(job, workspace.hashes, Progress(quiet=True)), workspace)
    hashing_s = sum(path.stat().st_size for path in paths) / HASH_BYTES_PER_S
    rows = [PlannedStage(HASHING, False, 0, hashing_s)]
    for stage in stages:
        done = stage.name in finished
        rows.append(PlannedStage(stage.name, done, 0 if done else stage.size_bytes, 0.0 if done else stage.seconds))
    require_disk(out, [stage for stage in stages if stage.name not in finished])
    return rows


def _open(config: BuildConfig, out: Path, offline: bool) -> Build:
    """Refuse what cannot be built before a checkpoint is downloaded, and the checkpoint before anything is written."""
    config = registry.resolved(config)
    _check_before_download(config)
    chosen_recipe(config)
    checkpoint = Checkpoint.open(config.model, revision=config.revision, offline=offline)
    config = for_checkpoint(config, checkpoint)
    _check_targets(config)
    return Build(config, checkpoint, out)


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


def _require_unchanged(job: Build, sources: Mapping[str, FileEntry], hashes: HashCache) -> None:
    """
    Raises:
        CheckpointError: a file changed after its hash was passed to the stages.
    """
    paths = job.source_files()
    changed = sorted(name for name in sources if not paths[name].is_file() or hashes.get(paths[name]) != sources[name])
    if changed:
        raise CheckpointError(
            "The checkpoint changed while it was being built.",
            where=job.checkpoint.folder,
            found=f"another content of {', '.join(changed)}",
            fix="run the same command again; what is built from the old files is made again",
        )


def run_stages(
    stages: Sequence[Stage],
    sources: Mapping[str, FileEntry],
    workspace: Workspace,
    progress: Progress,
    force: bool = False,
) -> tuple[dict[str, StageEntry], list[str]]:
    """Run the stages that are not done (all of them with `force`).

    Returns the files of all stages by name, and the names of those that ran.
    """
    done = {} if force else finished_stages(stages, sources, workspace)
    require_disk(workspace.out, [stage for stage in stages if stage.name not in done])
    finished: dict[str, StageEntry] = {}
    ran = []
    for stage in stages:
        digest = fingerprint(stage, sources, finished)
        # What a stage waited for may have turned out as it was: then it is done although that had to run.
        entry = done.get(stage.name) or (None if force else workspace.done(stage.name, digest))
        if entry:
            message = "%(stage)s: done before, fingerprint %(fingerprint)s"
            log_event(_LOG, logging.INFO, message, stage=stage.name, fingerprint=digest[:12])
            progress.skip(stage.name, "done before")
        else:
            workspace.begin_changes()
            inputs = [sources[name] for name in stage.sources]
            inputs += [file for name in stage.after for file in finished[name].files.values()]
            reads, message = _sizes(inputs), "%(stage)s: begins, may read %(files)d files of %(size)s"
            log_event(_LOG, logging.INFO, message, stage=stage.name, **reads)
            entry = _run(stage, digest, workspace, progress)
            ran.append(stage.name)
        finished[stage.name] = entry
    return finished, ran


def finished_stages(
    stages: Sequence[Stage], sources: Mapping[str, FileEntry], workspace: Workspace
) -> dict[str, StageEntry]:
    """The stages that need not run, with their files."""
    finished: dict[str, StageEntry] = {}
    for stage in stages:
        if all(name in finished for name in stage.after):
            entry = workspace.done(stage.name, fingerprint(stage, sources, finished))
            if entry is not None:
                finished[stage.name] = entry
    return finished


def _hash_sources(job: Build, hashes: HashCache, progress: Progress) -> dict[str, FileEntry]:
    paths = job.source_files()
    total = sum(path.stat().st_size for path in paths.values())
    with progress.stage(HASHING) as task:
        try:
            entries = hash_files(paths, task.report, hashes.get)
        except OSError as error:
            raise CheckpointError(
                "A file of the checkpoint cannot be read.",
                where=error.filename or job.checkpoint.folder,
                found=error.strerror or error,
                fix="check its disk, or the connection to it, and run the same command again; it resumes",
            ) from error
        task.outcome = size(total)
    return entries


def _run(stage: Stage, digest: str, workspace: Workspace, progress: Progress) -> StageEntry:
    with progress.stage(stage.name) as task:
        try:
            folder = workspace.begin(stage.name)
            with explain_full_disk(folder, stage.size_bytes), record_hashes() as hashes:
                stage.make(folder, task.report)
        except ParityError as error:
            raise _with_report(error, workspace.keep_report(stage.name)) from error
        entry = workspace.commit(stage.name, digest, hashes)
        written = _sizes(entry.files.values())
        task.outcome = f"{written['size']} in {task.elapsed}"
        message = "%(stage)s: wrote %(files)d files of %(size)s in %(seconds).1f s"
        log_event(_LOG, logging.INFO, message, stage=stage.name, **written, seconds=round(task.elapsed_s, 3))
    for name, file in entry.files.items():
        message = "%(stage)s: %(file)s, %(size_bytes)d bytes, sha256 %(sha256)s"
        log_event(_LOG, logging.DEBUG, message, stage=stage.name, file=name, size_bytes=file.size, sha256=file.sha256)
    for note in stage.notes(workspace.out):
        progress.note(f"warning: {note}")
    return entry


def _sizes(files: Collection[FileEntry]) -> dict[str, Any]:
    """Number and size of files, for the log."""
    total = sum(file.size for file in files)
    return {"files": len(files), "size": size(total), "size_bytes": total}


def _with_report(error: ParityError, report: Path | None) -> ParityError:
    fixes = [error.fix, f"see {report / 'parity.html'}" if report else None]
    return ParityError(
        error.what,
        where=error.where,
        expected=error.expected,
        found=error.found,
        fix="; ".join(fix for fix in fixes if fix),
    )


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
        device=provenance.device_name(config.device),
        tools=provenance.tool_versions(tools),
        stages=dict(stages),
    )
