"""Work that can be done anywhere: tasks, and where they run. Here they run one after the other in this process;
`ray_cluster` runs them on other machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BUILTIN_MODEL, BuildConfig
from r1v_export.progress import ProgressCallback, size, subrange


@dataclass(frozen=True)
class Task:
    """A piece of work. Done twice it gives the same files; after an interruption it goes on or begins anew.

    Attributes:
        name: for people.
        function: of a module, which another process imports; is called with `arguments`, which can be pickled, and
            `on_progress`.
        folder: that it writes to, and no other task at the same time.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    folder: Path


class Workers(Protocol):
    """Where tasks run."""

    def run(self, tasks: Sequence[Task], on_progress: ProgressCallback) -> None:
        """Do all tasks, in any order or at the same time."""
        ...


class ThisProcess:
    """Runs tasks one after the other."""

    def run(self, tasks: Sequence[Task], on_progress: ProgressCallback) -> None:
        """Do all tasks in their order."""
        for index, task in enumerate(tasks):
            part = subrange(on_progress, index / len(tasks), (index + 1) / len(tasks), task.name)
            task.function(*task.arguments, on_progress=part)


def found_memory(available: int, worker_bytes: int | None) -> str:
    """Free memory in words, for errors.

    Args:
        available: bytes.
        worker_bytes: None if they are this process's, and not those of a cluster's smallest worker.
    """
    return size(available) if worker_bytes is None else f"{size(available)} on the cluster's smallest worker"


def portable(config: BuildConfig, checkpoint: Checkpoint) -> BuildConfig:
    """The config for a process with another working folder: absolute paths, and a hub model as the folder that it was
    downloaded to."""
    if config.model == BUILTIN_MODEL:
        model = config.model
    else:
        model = str(Path(config.model).absolute() if Path(config.model).exists() else checkpoint.folder.absolute())
    calibration = config.calibration.model_copy(
        update={"data": _absolute(config.calibration.data), "artifact": _absolute(config.calibration.artifact)}
    )
    return config.model_copy(
        update={"model": model, "revision": None, "recipe": _absolute(config.recipe), "calibration": calibration}
    )


def read_paths(config: BuildConfig) -> list[Path]:
    """What tasks of a portable config read."""
    named = (config.model, config.recipe, config.calibration.data, config.calibration.artifact)
    return [Path(path) for path in named if path is not None and Path(path).is_absolute()]


def _absolute(path: str | None) -> str | None:
    """A path made absolute; a name of something in the package stays."""
    return str(Path(path).absolute()) if path is not None and Path(path).exists() else path
