"""Processes of their own, for tests of what several share or one leaves behind."""

from __future__ import annotations

import multiprocessing
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event

SPAWN = multiprocessing.get_context("spawn")
WAIT_S = 120
"""For another process, at most: it imports libraries first, maybe on a busy machine."""


def start(function: Callable[..., None], *arguments: object) -> SpawnProcess:
    """A process that calls a function of a module."""
    process = SPAWN.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def run_all(*processes: SpawnProcess) -> None:
    """Wait for processes, each of which has to end without an error."""
    for process in processes:
        process.join(WAIT_S)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def kill_at(reached: Event, process: SpawnProcess) -> None:
    """Kill a process where it says that it is."""
    assert reached.wait(WAIT_S)
    process.kill()
    process.join(WAIT_S)
    assert process.exitcode == -signal.SIGKILL


def stop_at(reached: Event) -> None:
    """Say so, and stay there until `kill_at` kills this process."""
    reached.set()
    signal.pause()


def limit_files(size_bytes: int) -> None:
    """Let this process write no larger file: an error in the middle of writing, as on a full disk."""
    sys.dont_write_bytecode = True  # Python 3.11 gives a part of a file of bytecode its name
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
