"""What a Ray worker does: it answers what it has, does tasks, and writes how far they are.

Everything here runs in a process of another machine; errors are returned, because Ray would wrap what is raised.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1v_export.errors import CapabilityError, R1VError, UsageError
from r1v_export.files import explain_full_disk
from r1v_export.memory import available_bytes
from r1v_export.pipeline.provenance import INPUT_TOOLS, TRACING_TOOLS, code_digest, tool_versions
from r1v_export.pipeline.workers import Task

_POLL_S = 0.5
_LOCK_S = 60.0
"""How long a task waits for one that still writes to its folder: of a node that was lost and has not noticed yet."""


@dataclass(frozen=True)
class Done:
    """A finished task's result, and the worker that did it."""

    value: Any
    worker: str


def code_and_tools() -> dict[str, str]:
    """Versions that decide what a task writes: of this package and its code, of Python and of libraries."""
    parts = [path.name for path in Path(__file__).parents[1].iterdir() if path.name != "__pycache__"]
    return {**tool_versions((*TRACING_TOOLS, *INPUT_TOOLS)), "code of r1v-export": code_digest(parts)[:12]}


def probe(made: Mapping[str, str], reads: Sequence[Path]) -> R1VError | int:
    """The bytes that this worker can allocate, or what keeps it from doing tasks."""
    try:
        _require_same(made)
        _require_paths(reads)
    except R1VError as error:
        return error
    return available_bytes()


def _require_same(made: Mapping[str, str]) -> None:
    here = code_and_tools()
    differing = sorted(name for name in made.keys() | here.keys() if made.get(name) != here.get(name))
    if differing:
        raise CapabilityError(
            "A worker has other versions and would compute something else.",
            where=f"worker {worker_name()}",
            expected=", ".join(f"{name} {made.get(name, 'absent')}" for name in differing),
            found=", ".join(f"{name} {here.get(name, 'absent')}" for name in differing),
            fix="install the same versions on every worker, and restart Ray there",
        )


def _require_paths(reads: Sequence[Path]) -> None:
    missing = [path for path in reads if not path.exists()]
    if missing:
        raise CapabilityError(
            "A worker does not see a path that its tasks need.",
            where=f"worker {worker_name()}",
            expected=", ".join(map(str, missing)),
            found="no such path there",
            fix="put checkpoint, data and output on storage that all workers mount under the same path",
        )


def work(task: Task, folder: Path, made: Mapping[str, str], reads: Sequence[Path]) -> Done | R1VError:
    """Do a task on a worker. Errors are returned: Ray would wrap what is raised."""
    worker = worker_name()
    try:
        _require_same(made)  # also of a node that joined the cluster after the check
        _require_paths([*reads, folder])
        with _alone(task.folder), explain_full_disk(task.folder):
            report = _ProgressFile(progress_file(folder, task))
            return Done(task.function(*task.arguments, on_progress=report), worker)
    except R1VError as error:
        return _by_worker(error, worker)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        fix = "see Ray's log of the task, and run the same command again; it resumes"
        return R1VError(f"A task failed: {task.name}.", where=f"worker {worker}", found=what, fix=fix)


def worker_name() -> str:
    """The machine that this process runs on, as people find it in the cluster."""
    import ray

    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"


def _by_worker(error: R1VError, worker: str) -> R1VError:
    """The same error, of texts alone, with the worker's name."""
    texts = {
        name: None if value is None else str(value)
        for name, value in (("expected", error.expected), ("found", error.found))
    }
    where = f"worker {worker}" if error.where is None else f"{error.where}, on worker {worker}"
    return type(error)(error.what, where=where, fix=error.fix, **texts)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a task's folder; wait for one who still has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path, until = folder.with_name(f".{folder.name}.lock"), time.monotonic() + _LOCK_S
    with path.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    file.seek(0)
                    raise UsageError(
                        "Another worker still does this task.",
                        where=path,
                        found=file.read().strip(),
                        fix="end it, and run the same command again",
                    ) from None
                time.sleep(_POLL_S)
        file.truncate(0)
        file.write(f"{socket.gethostname()} {os.getpid()}\n")
        file.flush()
        yield


class _ProgressFile:
    """A ProgressCallback that writes how far a task is to a file, now and then."""

    def __init__(self, path: Path) -> None:
        self.path, self._written = path, 0.0

    def __call__(self, done: float, total: float, status: str = "") -> None:
        now = time.monotonic()
        if now - self._written >= _POLL_S:
            self._written = now
            with contextlib.suppress(OSError):  # for people only
                self.path.write_text(f"{done / total if total else 0.0:.4f}", encoding="utf-8")


def read_progress(path: Path) -> float:
    """How far a task is, from 0 to 1, by its file."""
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0


def progress_file(folder: Path, task: Task) -> Path:
    """Where a task writes how far it is."""
    return folder / f"{task.folder.name}.progress"
