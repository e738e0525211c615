"""Progress of long work on stderr: what runs, how far it is, how long it will still take.

On a terminal one line is redrawn; elsewhere each finished stage leaves one line. Nothing goes to stdout.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_REDRAW_S = 0.1


class Progress:
    """Shows the stages of one piece of work, in turn.

    Args:
        stages: how many there will be; may be set later.
        stream: where to, stderr unless told.
        quiet: show nothing.
    """

    def __init__(self, stages: int = 0, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.stages, self.number = stages, 0
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.live = self.stream.isatty() and not quiet

    @contextmanager
    def stage(self, name: str, total: int = 0) -> Iterator[Task]:
        """Show a stage while it runs; `total` is its work in any unit, 0 when unknown."""
        task = Task(self, self._next_title(name), total)
        task.draw()
        try:
            yield task
        except BaseException:
            self.write(f"{task.title}: stopped after {task.elapsed}", last=True)
            raise
        self.write(f"{task.title}: {task.outcome or task.elapsed}", last=True)

    def skip(self, name: str, why: str) -> None:
        """Count a stage that need not run."""
        self.write(f"{self._next_title(name)}: {why}", last=True)

    def note(self, line: str) -> None:
        """Say something that stays."""
        self.write(f"  {line}", last=True)

    def _next_title(self, name: str) -> str:
        self.number += 1
        return f"[{self.number}/{self.stages}] {name}"

    def write(self, line: str, last: bool) -> None:
        if self.live:
            # A line that is redrawn must not wrap: what it wraps to is never erased.
            shown = line if last else line[: shutil.get_terminal_size().columns - 1]
            self.stream.write(f"\r\x1b[K{shown}" + ("\n" if last else ""))
            self.stream.flush()
        elif last and not self.quiet:
            print(line, file=self.stream, flush=True)


class Task:
    """The running stage: `advance` as its work is done; `outcome` replaces the time taken in the last line.

    Attributes:
        doing: the step that runs, if it says; seen only while it runs.
    """

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self.progress, self.title, self.total = progress, title, total
        self.done, self.doing = 0, ""
        self.outcome: str | None = None
        self.started, self._drawn = time.monotonic(), 0.0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def elapsed(self) -> str:
        return duration(self.elapsed_s)

    def advance(self, amount: int, doing: str = "") -> None:
        """A new step is drawn at once: it may take long, and tell nothing meanwhile."""
        self.done += amount
        is_new = doing not in ("", self.doing)
        self.doing = doing or self.doing
        if is_new or time.monotonic() - self._drawn >= _REDRAW_S:
            self.draw()

    def draw(self) -> None:
        self._drawn = time.monotonic()
        doing = f" ({self.doing})" if self.doing else ""
        self.progress.write(f"{self.title}{self._state()}{doing}", last=False)

    def _state(self) -> str:
        if not self.done or self.done > self.total:
            return " ..."
        left_s = self.elapsed_s * (self.total - self.done) / self.done
        return f": {100 * self.done // self.total} %, {duration(left_s)} left"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(size_bytes: float) -> str:
    """Decimal units, as disks are sold: `512 B`, `9.9 MB`, `76.8 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
