"""Tasks on an existing Ray cluster: workers that are checked first, retries of those that die, errors by worker.

Tasks read and write folders on storage that the command and all workers see under the same path. Ray schedules: a task
takes as many CPUs as the smallest node has (and a GPU where the device is one), so equal machines do one task at a
time each.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1v_export.config import Device
from r1v_export.count import Count
from r1v_export.cpus import ThreadCount, threads_of_tasks
from r1v_export.errors import CapabilityError, R1VError, UsageError
from r1v_export.extras import install_command
from r1v_export.files import write_atomically
from r1v_export.pipeline.ray_worker import Done, code_and_tools, probe, progress_file, read_progress, work
from r1v_export.pipeline.workers import Task
from r1v_export.progress import ProgressCallback

MAX_RETRIES = 3
"""Of a task whose worker dies."""

_LISTENER_S = 10.0
"""How long an address may take to answer at all."""

_POLL_S = 0.5
_CANCEL_S = 10.0


@dataclass(frozen=True)
class ClusterSize:
    """How many workers a cluster has, and the bytes that a task can take on the smallest of them."""

    workers: int
    memory_bytes: int


class RayCluster:
    """Workers of a Ray cluster. Made by `open_cluster`.

    Args:
        folder: on the shared storage, for what tasks report; removed at the end.
        reads: paths that tasks read.
    """

    def __init__(self, folder: Path, reads: Sequence[Path], device: Device) -> None:
        self.folder, self.reads = folder, reads
        self._nodes = _nodes_for(device)
        self._resources = _task_resources(self._nodes, device)
        self._running: dict[Any, Task] = {}
        self._made = code_and_tools()
        self.memory_bytes = 0
        """That a task can take on the smallest worker, once `check_workers` has asked."""

    def check_workers(self) -> None:
        """Compare every worker with this process, and ask for its free memory.

        Raises:
            CapabilityError: a worker has another version of this package or of what it computes with, or lacks a path.
        """
        token = self.folder / "token"
        write_atomically(token, lambda path: path.write_text(f"{socket.gethostname()} {os.getpid()}"))
        self.memory_bytes = _ask(self._nodes, self._resources, self._made, [*self.reads, token])

    def submit(self, task: Task) -> Any:
        """Give a task to the cluster; its reference there."""
        import ray

        remote = ray.remote(work).options(
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
            on_wait({task.name: read_progress(progress_file(self.folder, task)) for task in tasks})
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
    with _connected(address):
        cluster = RayCluster(folder, reads, device)
        try:
            cluster.check_workers()
            yield cluster
        finally:
            cluster.cancel()
            shutil.rmtree(folder, ignore_errors=True)


def ask_cluster(address: str, reads: Sequence[Path], device: Device) -> ClusterSize:
    """What a cluster has for a build; nothing is written.

    Raises:
        CapabilityError: as `open_cluster`.
    """
    with _connected(address):
        nodes = _nodes_for(device)
        return ClusterSize(len(nodes), _ask(nodes, _task_resources(nodes, device), code_and_tools(), reads))


@contextmanager
def _connected(address: str) -> Iterator[None]:
    if not address.strip():
        fix = "pass one, or omit --ray"
        raise UsageError(
            "The address of a Ray cluster is empty.", where="--ray", expected="auto, or HOST:PORT", fix=fix
        )
    if importlib.util.find_spec("ray") is None:
        raise CapabilityError("Ray is not installed.", where=f"--ray {address}", fix=install_command("build,ray"))
    import ray

    was_connected = ray.is_initialized()
    if not was_connected:
        _connect(address)
    try:
        yield
    finally:
        if not was_connected:
            ray.shutdown()


def _require_listener(address: str) -> None:
    """Refuse HOST:PORT where nothing listens: Ray itself tries for minutes, with lines of its own on stderr.

    Raises:
        CapabilityError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # auto and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LISTENER_S).close()
    except (OSError, OverflowError) as error:
        found = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise _no_cluster(address, found) from error


def _no_cluster(address: str, found: object) -> CapabilityError:
    return CapabilityError(
        "There is no such Ray cluster.",
        where=f"--ray {address}",
        found=found,
        fix="start one (ray start --head, and ray start --address HEAD:6379 on the others), with the same versions "
        "of Ray and Python everywhere",
    )


def _connect(address: str) -> None:
    import ray

    _require_listener(address)
    threads = threads_of_tasks()
    main_thread = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM) if main_thread else None
    try:
        ray.init(
            address=address,
            configure_logging=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # The number of threads orders floating-point sums.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads.count)}} if threads else None,
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, _last_line(error)) from error
    finally:
        if on_sigterm is not None:
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own, which would end the command without a word


def _nodes_for(device: Device) -> list[dict[str, Any]]:
    """The nodes that can do tasks.

    Raises:
        CapabilityError: there are none.
        UsageError: the user asks for more threads than the smallest has CPUs.
    """
    import ray

    needed = ("CPU", "GPU") if device == "cuda" else ("CPU",)
    alive = [node for node in ray.nodes() if node["Alive"]]
    fit = [node for node in alive if all(node["Resources"].get(resource, 0) >= 1 for resource in needed)]
    if not fit:
        raise CapabilityError(
            "The Ray cluster has no worker for this.",
            expected=f"a node with a {' and a '.join(needed)}",
            found=f"{Count(len(alive), 'node')} without",
            fix="add a node, or choose another --device",
        )
    _require_cpus(fit, threads_of_tasks())
    return fit


def _require_cpus(nodes: Sequence[Mapping[str, Any]], threads: ThreadCount | None) -> None:
    """
    Raises:
        UsageError: more threads are asked for than the smallest node has CPUs.
    """
    smallest = min(nodes, key=lambda node: float(node["Resources"]["CPU"]))
    cpus = int(smallest["Resources"]["CPU"])
    if threads is not None and threads.count > cpus:
        raise UsageError(
            "More threads than CPUs of the cluster's smallest node would wait for each other.",
            where=threads.source,
            expected=f"1 to {cpus} (CPUs of {smallest['NodeManagerHostname']}, {smallest['NodeManagerAddress']})",
            found=threads.count,
            fix=f"pass --threads {cpus}, or a cluster of larger nodes",
        )


def _task_resources(nodes: Sequence[Mapping[str, Any]], device: Device) -> dict[str, int]:
    """What a task takes, as `ray.remote` names it: as many CPUs as the smallest node has, shared by its GPUs."""
    cpus = min(int(node["Resources"]["CPU"]) for node in nodes)
    gpus = max(int(node["Resources"].get("GPU", 0)) for node in nodes) if device == "cuda" else 0
    return {"num_cpus": max(1, cpus // max(1, gpus)), "num_gpus": 1 if gpus else 0}


def _ask(
    nodes: Sequence[Mapping[str, Any]], takes: Mapping[str, int], made: Mapping[str, str], paths: Sequence[Path]
) -> int:
    """Compare every worker with this process; return the bytes that a task can take on the smallest of them: what is
    free, shared by as many tasks as run there at once.

    Raises:
        CapabilityError: a worker cannot do the work.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probes = []
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        remote = ray.remote(probe).options(num_cpus=0, scheduling_strategy=strategy, name="r1v-export check")
        probes.append(remote.remote(made, paths))
    free = [_answer(node, each) for node, each in zip(nodes, probes, strict=True)]
    return min(each // _tasks_at_once(node["Resources"], takes) for each, node in zip(free, nodes, strict=True))


def _tasks_at_once(has: Mapping[str, float], takes: Mapping[str, int]) -> int:
    """How many tasks a node runs at once.

    Args:
        has: the node's resources, as Ray names them.
        takes: a task's, as `ray.remote` names them.
    """
    needed = (("CPU", takes["num_cpus"]), ("GPU", takes["num_gpus"]))
    return max(1, min(int(has.get(name, 0)) // count for name, count in needed if count))


def _answer(node: Mapping[str, Any], probe: Any) -> int:
    """The free memory that a worker's probe returns.

    Raises:
        CapabilityError: what keeps the worker from doing tasks.
    """
    import ray
    from ray.exceptions import RayError

    try:
        found = ray.get(probe)
    except RayError as error:
        raise CapabilityError(
            "A worker cannot run tasks of r1v-export.",
            where=f"worker {node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            found=_last_line(error),
            fix="install the same version of r1v-export with the extras build and ray on every worker",
        ) from error
    if isinstance(found, R1VError):
        raise found
    return int(found)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
