"""Running the stages of a build that are not done: here in their order, or the long ones as tasks of a Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from r1v_export.count import Count
from r1v_export.errors import ParityError, R1VError
from r1v_export.files import explain_full_disk
from r1v_export.hashed_files import record_hashes
from r1v_export.log_event import log_event
from r1v_export.manifest import StageEntry
from r1v_export.pipeline.estimate import refuse_impossible
from r1v_export.pipeline.ray_cluster import RayCluster, open_cluster
from r1v_export.pipeline.sources import Sources
from r1v_export.pipeline.stage import Stage, StageInputs, fingerprint
from r1v_export.pipeline.stage_task import stage_task
from r1v_export.pipeline.stages import Build
from r1v_export.pipeline.workers import portable, read_paths
from r1v_export.pipeline.workspace import Workspace, stage_files
from r1v_export.progress import Progress, size

_LOG = logging.getLogger(__name__)


def run_stages(
    stages: Sequence[Stage], sources: Sources, workspace: Workspace, progress: Progress, force: bool = False
) -> tuple[dict[str, StageEntry], list[str]]:
    """Run the stages that are not done (all of them with `force`).

    A stage that ends before its sources are hashed is remembered by what `stat` says of them. At the end all are known
    by content.

    Returns the files of all stages by name, and the names of those that ran.
    """
    done = {} if force else finished_stages(stages, sources, workspace)
    refuse_impossible(workspace.out, [stage for stage in stages if stage.name not in done])
    if not progress.quiet:  # nobody sees how long it will take, and the machine's rates need not be measured
        progress.expected_s = {stage.name: stage.seconds() for stage in stages if stage.name not in done}
    finished: dict[str, StageEntry] = {}
    ran = []
    for stage in stages:
        # What a stage waited for may have turned out as it was: then it is done although that had to run.
        entry = done.get(stage.name) or (None if force else _done(stage, sources, finished, workspace))
        if entry:
            message = "%(stage)s: done before, fingerprint %(fingerprint)s"
            log_event(_LOG, logging.INFO, message, stage=stage.name, fingerprint=entry.fingerprint[:12])
            progress.skip(stage.name, "done before")
        else:
            workspace.begin_changes()
            sizes = [sources.size_bytes[name] for name in stage.sources]
            sizes += [file.size for name in stage.after for file in finished[name].files.values()]
            message = "%(stage)s: begins, may read %(files)s of %(size)s"
            log_event(_LOG, logging.INFO, message, stage=stage.name, **_sizes(sizes))
            entry = _run(stage, sources, finished, workspace, progress, force)
            ran.append(stage.name)
        finished[stage.name] = entry
    return {stage.name: _by_content(stage, sources, finished) for stage in stages}, ran


def run_on_ray(
    address: str, job: Build, sources: Sources, workspace: Workspace, progress: Progress, force: bool
) -> tuple[dict[str, StageEntry], list[str]]:
    """`run_stages` with the long stages as tasks of a Ray cluster, each as soon as those are finished that it reads.

    This process holds the bundle's lock, and moves what tasks write into it.
    """
    reads = [*read_paths(portable(job.config, job.checkpoint)), job.out.absolute()]
    with open_cluster(address, (workspace.work / "ray").absolute(), reads, job.config.device) as cluster:
        job = replace(job, out=job.out.absolute(), workers=cluster, worker_bytes=cluster.memory_bytes, gates={})
        stages = job.stages()
        done = {} if force else finished_stages(stages, sources, workspace)
        refuse_impossible(workspace.out, [stage for stage in stages if stage.name not in done])
        finished: dict[str, StageEntry] = {}
        ran: list[str] = []
        waiting = list(stages)
        while len(finished) < len(stages):
            stage = next((stage for stage in waiting if all(name in finished for name in stage.after)), None)
            if stage is None:
                stage, entry = _next_made(cluster, stages, sources, finished, workspace, progress)
                ran.append(stage.name)
                finished[stage.name] = entry
                continue
            waiting.remove(stage)
            before = done.get(stage.name) or (None if force else _done(stage, sources, finished, workspace))
            if before:
                progress.skip(stage.name, "done before")
                finished[stage.name] = before
                continue
            workspace.begin_changes()
            if stage.records_hashes:
                sources.hashed()
            if stage.is_task:
                cluster.submit(stage_task(job, stage, sources.current(stage.sources), finished))
            else:
                ran.append(stage.name)
                finished[stage.name] = _run(stage, sources, finished, workspace, progress, force)
    return {stage.name: _by_content(stage, sources, finished) for stage in stages}, ran


def _next_made(
    cluster: RayCluster,
    stages: Sequence[Stage],
    sources: Sources,
    finished: Mapping[str, StageEntry],
    workspace: Workspace,
    progress: Progress,
) -> tuple[Stage, StageEntry]:
    """Take up what the next task to end wrote."""

    def show(parts: Mapping[str, float]) -> None:
        progress.write("on Ray: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in parts.items()), False)

    task, result = cluster.next_done(show)
    stage = next(stage for stage in stages if stage.name == task.name)
    if isinstance(result, ParityError):
        raise _with_report(result, workspace.keep_report(stage.name))
    if isinstance(result, R1VError):
        raise result
    with progress.stage(stage.name) as shown:
        entry = workspace.commit(stage.name, _current(stage, sources, finished), result.value)
        shown.outcome = f"{_sizes([file.size for file in entry.files.values()])['size']} by {result.worker}"
    _announce(stage, entry, workspace, progress)
    return stage, entry


def _current(stage: Stage, sources: Sources, finished: Mapping[str, StageEntry]) -> str:
    """The fingerprint of a stage, by what is known of its sources."""
    return fingerprint(stage, sources.current(stage.sources), finished)


def _by_content(stage: Stage, sources: Sources, finished: Mapping[str, StageEntry]) -> StageEntry:
    digest = fingerprint(stage, sources.contents(stage.sources), finished)
    return StageEntry(fingerprint=digest, files=finished[stage.name].files)


def finished_stages(stages: Sequence[Stage], sources: Sources, workspace: Workspace) -> dict[str, StageEntry]:
    """The stages that need not run, with their files."""
    finished: dict[str, StageEntry] = {}
    for stage in stages:
        if all(name in finished for name in stage.after):
            entry = _done(stage, sources, finished, workspace)
            if entry is not None:
                finished[stage.name] = entry
    return finished


def _done(
    stage: Stage, sources: Sources, finished: Mapping[str, StageEntry], workspace: Workspace
) -> StageEntry | None:
    """The stage's files if it need not run; waits for hashes only if `stat` says something else of a source."""
    if not workspace.remembers(stage.name):
        return None
    entry = workspace.done(stage.name, fingerprint(stage, sources.identities, finished))
    return entry or workspace.done(stage.name, fingerprint(stage, sources.contents(stage.sources), finished))


def _run(
    stage: Stage,
    sources: Sources,
    finished: Mapping[str, StageEntry],
    workspace: Workspace,
    progress: Progress,
    force: bool,
) -> StageEntry:
    """Run a stage; it goes on with what a killed run wrote from the same sources, by what `stat` says of them."""
    if stage.records_hashes:
        sources.hashed()
    inputs = StageInputs(sources.current(stage.sources), finished)
    journal = workspace.begin(stage.name, fingerprint(stage, sources.identities, finished), resume=not force)
    with progress.stage(stage.name) as task:
        try:
            with explain_full_disk(journal.folder, stage.size_bytes), record_hashes(journal) as hashes:
                stage.make(journal.folder, inputs, task.report)
        except ParityError as error:
            raise _with_report(error, workspace.keep_report(stage.name)) from error
        entry = workspace.commit(stage.name, _current(stage, sources, finished), stage_files(journal.folder, hashes))
        written = _sizes([file.size for file in entry.files.values()])
        task.outcome = f"{written['size']} in {task.elapsed}"
        message = "%(stage)s: wrote %(files)s of %(size)s in %(seconds).1f s"
        log_event(_LOG, logging.INFO, message, stage=stage.name, **written, seconds=round(task.elapsed_s, 3))
    _announce(stage, entry, workspace, progress)
    return entry


def _announce(stage: Stage, entry: StageEntry, workspace: Workspace, progress: Progress) -> None:
    """Log a finished stage's files, and show its notes."""
    for name, file in entry.files.items():
        message = "%(stage)s: %(file)s, %(size_bytes)s, sha256 %(sha256)s"
        log_event(
            _LOG,
            logging.DEBUG,
            message,
            stage=stage.name,
            file=name,
            size_bytes=Count(file.size, "byte"),
            sha256=file.sha256,
        )
    for note in stage.notes(workspace.out):
        progress.note(f"warning: {note}")


def _sizes(sizes_bytes: Sequence[int]) -> dict[str, Any]:
    """Number and size of files, for the log."""
    total = sum(sizes_bytes)
    return {"files": len(sizes_bytes), "size": size(total), "size_bytes": total}


def _with_report(error: ParityError, report: Path | None) -> ParityError:
    from r1v_export.parity.report import failed_page

    page = failed_page(report) if report else None
    fixes = [error.fix, f"see {page}" if page else None]
    return ParityError(
        error.what,
        where=error.where,
        expected=error.expected,
        found=error.found,
        fix="; ".join(fix for fix in fixes if fix),
    )
