"""A graph that is opened, and processes that open it. Imports little: each process does so anew."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import numpy as np

from r1v_export.targets.onnxruntime.runtime import optimized_graphs, session
from r1v_export.targets.onnxruntime.runtime.session import open_session
from tests.targets.child_processes import WAIT_S, limit_files, stop_at

DEPTH = 256
X = np.random.default_rng(0).standard_normal((3, DEPTH), dtype=np.float32)


def result(path: Path, keep: bool = True) -> np.ndarray:
    output: np.ndarray = open_session(path, path.parent, "cpu", 1, keep=keep).run(None, {"x": X})[0]
    return output


def open_in_this_process(path: Path, expected: np.ndarray, behind_saving: Callable[[], object]) -> None:
    optimized_graphs.LEAST_BYTES = 1
    real = session.ort.InferenceSession

    def create(*arguments: object, **options: object):
        made = real(*arguments, **options)
        behind_saving()
        return made

    session.ort.InferenceSession = create
    np.testing.assert_array_equal(result(path), expected)


def open_at_once(path: Path, expected: np.ndarray, both: Barrier) -> None:
    open_in_this_process(path, expected, lambda: both.wait(WAIT_S))


def open_until_killed(path: Path, expected: np.ndarray, reached: Event) -> None:
    open_in_this_process(path, expected, lambda: stop_at(reached))


def open_on_a_full_disk(path: Path, expected: np.ndarray, limit_bytes: int) -> None:
    limit_files(limit_bytes)
    open_in_this_process(path, expected, lambda: None)
