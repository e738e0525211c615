"""Tasks of the tests of `--ray`, in a module that workers can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1v_export.errors import InputError
from r1v_export.progress import ProgressCallback


def die_once(
    function: Callable[..., Any], marker: Path, calls: int, arguments: tuple[Any, ...], *, on_progress: ProgressCallback
) -> Any:
    """Another task, whose process the first attempt kills in the middle."""
    left = calls

    def report(done: float, total: float, status: str = "") -> None:
        nonlocal left
        left -= 1
        if left <= 0 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        on_progress(done, total, status)

    return function(*arguments, on_progress=report)


def value(number: int, *, on_progress: ProgressCallback) -> int:
    return number


def die(*, on_progress: ProgressCallback) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(*, on_progress: ProgressCallback) -> None:
    raise InputError("This cannot be used.", where="sample 3", expected=Path("a"), found=ValueError("b"), fix="do not")


def fail(*, on_progress: ProgressCallback) -> None:
    raise ZeroDivisionError("a defect")


def sleep(pid: Path, *, on_progress: ProgressCallback) -> None:
    pid.write_text(str(os.getpid()), encoding="utf-8")
    on_progress(1, 2)
    time.sleep(600)
