"""A graph whose rounded weights are kept, and processes that keep them. Imports little: each process does so anew."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import numpy as np

from r1v_export.targets.openvino.engine_file import Weight
from r1v_export.targets.openvino.runtime import kept_weights
from r1v_export.targets.openvino.runtime.kept_weights import WEIGHTS, entry_of, keeping
from tests.targets.child_processes import WAIT_S, limit_files, stop_at

RNG = np.random.default_rng(0)
CONTENT = {
    "a": [RNG.integers(-127, 128, (70, 50), np.int8), RNG.random(70, np.float32)],
    "b": [np.arange(9, dtype="u2")],
}


class Graph:
    """A graph's file and its weights', what was made of them instead of read, and what is called before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.made = folder, folder / "vision.onnx", list[str]()
        self.before: Callable[[str], object] = lambda _: None
        if not folder.exists():  # another process's, too
            folder.mkdir()
            self.path.touch()
            (folder / "vision.data").write_bytes(bytes(400))
        self.weights = {"a": Weight(file="vision.data", offset=0, size_bytes=400, type="f32", shape=(10, 10))}

    def entry(self, products: str = "int8"):
        return entry_of(self.path, self.folder, self.weights, products, 1)

    def file(self) -> Path:
        return self.entry().folder / WEIGHTS

    def arrays(self, products: str = "int8") -> list[np.ndarray]:
        """What `keeping` gives, which has to be `CONTENT`."""
        found: list[np.ndarray] = []
        with keeping(self.entry(products)) as keep:
            for name, content in CONTENT.items():

                def make(name: str = name, content: list[np.ndarray] = content) -> list[np.ndarray]:
                    self.before(name)
                    self.made.append(name)
                    return content

                arrays = keep(name, make)
                for array, expected in zip(arrays, content, strict=True):
                    assert array.dtype == expected.dtype
                    np.testing.assert_array_equal(array, expected)
                found += arrays
        return found

    def were_made(self) -> bool:
        """Whether the last call of `arrays` made them."""
        made, self.made = self.made, []
        assert made in ([], ["a", "b"])
        return bool(made)


def make_in_this_process(folder: Path, before: Callable[[str], object] = lambda _: None) -> None:
    kept_weights.LEAST_BYTES = 1
    graph = Graph(folder)
    graph.before = before
    graph.arrays()


def make_at_once(folder: Path, both: Barrier) -> None:
    make_in_this_process(folder, lambda _: both.wait(WAIT_S))


def make_until_killed(folder: Path, reached: Event) -> None:
    make_in_this_process(folder, lambda name: name == "b" and stop_at(reached))


def make_on_a_full_disk(folder: Path, limit_bytes: int) -> None:
    limit_files(limit_bytes)
    make_in_this_process(folder)
