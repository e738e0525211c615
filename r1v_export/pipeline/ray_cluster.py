"""Tasks on an existing Ray cluster: workers that are checked first, retries of those that die, errors by worker.

Tasks read and write folders on storage that the command and all workers see under the same path. Ray schedules: a task
takes as many CPUs as the smallest node has (and a GPU where the device is one), so equal machines do one task at a
time each.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1v_export.config import Device
from r1v_export.cpus import thread_count
from r1v_export.errors import CapabilityError, R1VError, UsageError
from r1v_export.extras import install_command
from r1v_export.files import explain_full_disk, write_atomically
from r1v_export.pipeline.provenance import INPUT_TOOLS, TRACING_TOOLS, code_digest, tool_versions
from r1v_export.pipeline.workers import Task
from r1v_export.progress import ProgressCallback

MAX_RETRIES = 3
"""Of a task whose worker dies."""

_POLL_S = 0.5
_CANCEL_S = 10.0
_LOCK_S = 60.0
"""How long a task waits for one that still writes to its folder: of a node that was lost and has not noticed yet."""


@dataclass(frozen=True)
class Done:
    """A finished task's result, and the worker that did it."""

    value: Any
    worker: str


class RayCluster:
    """Workers of a Ray cluster. Made by `open_cluster`.

    Args:
        folder: on the shared storage, for what tasks report; removed at the end.
        reads: paths that tasks read.
    """

    def __init__(self, folder: Path, reads: Sequence[Path], device: Device) -> None:
        self.folder, self.reads = folder, reads
        self._nodes = _nodes_for(device)
        cpus = min(int(node["Resources"]["CPU"]) for node in self._nodes)
        gpus = max(int(node["Resources"].get("GPU", 0)) for node in self._nodes) if device == "cuda" else 0
        self._resources = {"num_cpus": max(1, cpus // max(1, gpus)), "num_gpus": 1 if gpus else 0}
        self._running: dict[Any, Task] = {}
        self._made = code_and_tools()

    def check_workers(self) -> None:
        """Compare every worker with this process.

        Raises:
            CapabilityError: a worker has another version of this package or of what it computes with, or lacks a path.
        """
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        token = self.folder / "token"
        write_atomically(token, lambda path: path.write_text(f"{socket.gethostname()} {os.getpid()}"))
        probes = {}
        for node in self._nodes:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            probe = ray.remote(_probe).options(num_cpus=0, scheduling_strategy=strategy, name="r1v-export check")
            probes[f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"] = probe.remote(
                self._made, [*self.reads, token]
            )
        for worker, reference in probes.items():
            try:
                problem = ray.get(reference)
            except RayError as error:
                raise CapabilityError(
                    "A worker cannot run tasks of r1v-export.",
                    where=f"worker {worker}",
                    found=_last_line(error),
                    fix="install the same version of r1v-export with the extras build and ray on every worker",
                ) from error
            if problem is not None:
                raise problem

    def submit(self, task: Task) -> Any:
        """Give a task to the cluster; its reference there."""
        import ray

        remote = ray.remote(_work).options(
            **self._resources, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD", name=f"r1v-export {task.name}"
        )
        reference = remote.remote(task, self.folder, self._made, self.reads)
        self._running[reference] = task
        return reference

    def next_done(
        self, on_wait: Callable[[Mapping[str, float]], None], among: Sequence[Any] | None = None
    ) -> tuple[Task, Done | R1VError]:
        """Wait for the next task to end, and return how it did: the error is what it raised, with the worker's name,
        or says that workers died under it too often.

        Args:
            on_wait: is called now and then with how far the awaited tasks are, from 0 to 1, by name.
            among: references of the awaited tasks, as `submit` returns them; all by default.
        """
        import ray
        from ray.exceptions import RayError

        awaited = list(self._running if among is None else among)
        while True:
            finished, _ = ray.wait(awaited, num_returns=1, timeout=_POLL_S)
            if finished:
                break
            tasks = [self._running[reference] for reference in awaited]
            on_wait({task.name: _read_progress(_progress_file(self.folder, task)) for task in tasks})
        task = self._running.pop(finished[0])
        try:
            return task, ray.get(finished[0])
        except RayError as error:
            return task, R1VError(
                "A task cannot be finished on the cluster: its workers died.",
                where=task.name,
                expected=f"at most {MAX_RETRIES} of them to die",
                found=_last_line(error),
                fix="see Ray's logs for what ended them (memory?), and run the same command again; it resumes",
            )

    def run(self, tasks: Sequence[Task], on_progress: ProgressCallback) -> None:
        """Do all tasks, as many at a time as the cluster has room for. What was submitted before runs on, and stays for
        `next_done`.

        Raises:
            R1VError: that of a task, as `next_done` returns it.
        """
        references = [self.submit(task) for task in tasks]
        for finished in range(1, len(tasks) + 1):
            awaited = [reference for reference in references if reference in self._running]
            _, done = self.next_done(
                lambda running: on_progress(len(tasks) - len(running) + sum(running.values()), len(tasks)), awaited
            )
            if isinstance(done, R1VError):
                raise done
            on_progress(finished, len(tasks), f"{finished} of {len(tasks)} done, the last by {done.worker}")

    def cancel(self) -> None:
        """End all tasks that run or wait, and wait for that."""
        import ray

        for reference in self._running:
            with contextlib.suppress(Exception):  # it is over, or the cluster is
                ray.cancel(reference, force=True)
        if self._running:
            with contextlib.suppress(Exception):
                ray.wait(list(self._running), num_returns=len(self._running), timeout=_CANCEL_S)
        self._running.clear()


@contextmanager
def open_cluster(address: str, folder: Path, reads: Sequence[Path], device: Device) -> Iterator[RayCluster]:
    """Connect to a Ray cluster and check its workers; at the end, or of an error, cancel what still runs there.

    Args:
        address: as `ray.init` takes it, such as `auto`.
        folder, reads: see `RayCluster`.

    Raises:
        CapabilityError: Ray is not installed, there is no such cluster, or a worker cannot do the work.
    """
    if importlib.util.find_spec("ray") is None:
        raise CapabilityError("Ray is not installed.", where=f"--ray {address}", fix=install_command("build,ray"))
    import ray

    was_connected = ray.is_initialized()
    if not was_connected:
        _connect(address)
    try:
        cluster = RayCluster(folder, reads, device)
        try:
            cluster.check_workers()
            yield cluster
        finally:
            cluster.cancel()
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if not was_connected:
            ray.shutdown()


def code_and_tools() -> dict[str, str]:
    """Versions that decide what a task writes: of this package and its code, of Python and of libraries."""
    parts = [path.name for path in Path(__file__).parents[1].iterdir() if path.name != "__pycache__"]
    return {**tool_versions((*TRACING_TOOLS, *INPUT_TOOLS)), "code of r1v-export": code_digest(parts)[:12]}


def _connect(address: str) -> None:
    import ray

    threads = thread_count()
    main_thread = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM) if main_thread else None
    try:
        ray.init(
            address=address,
            configure_logging=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # The number of threads orders floating-point sums.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads.count)}} if threads.asked else None,
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise CapabilityError(
            "There is no such Ray cluster.",
            where=f"--ray {address}",
            found=_last_line(error),
            fix="start one (ray start --head, and ray start --address HEAD:6379 on the others), with the same versions "
            "of Ray and Python everywhere",
        ) from error
    finally:
        if on_sigterm is not None:
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own, which would end the command without a word


def _nodes_for(device: Device) -> list[dict[str, Any]]:
    """The nodes that can do tasks.

    Raises:
        CapabilityError: there are none.
    """
    import ray

    needed = ("CPU", "GPU") if device == "cuda" else ("CPU",)
    alive = [node for node in ray.nodes() if node["Alive"]]
    fit = [node for node in alive if all(node["Resources"].get(resource, 0) >= 1 for resource in needed)]
    if not fit:
        raise CapabilityError(
            "The Ray cluster has no worker for this.",
            expected=f"a node with a {' and a '.join(needed)}",
            found=f"{len(alive)} nodes without",
            fix="add a node, or choose another --device",
        )
    return fit


def _probe(made: Mapping[str, str], reads: Sequence[Path]) -> R1VError | None:
    """What keeps this worker from doing tasks."""
    try:
        _require_same(made)
        _require_paths(reads)
    except R1VError as error:
        return error
    return None


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


def _work(task: Task, folder: Path, made: Mapping[str, str], reads: Sequence[Path]) -> Done | R1VError:
    """Do a task on a worker. Errors are returned: Ray would wrap what is raised."""
    worker = worker_name()
    try:
        _require_same(made)  # also of a node that joined the cluster after the check
        _require_paths([*reads, folder])
        with _alone(task.folder), explain_full_disk(task.folder):
            report = _ProgressFile(_progress_file(folder, task))
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


def _read_progress(path: Path) -> float:
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0


def _progress_file(folder: Path, task: Task) -> Path:
    return folder / f"{task.folder.name}.progress"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
