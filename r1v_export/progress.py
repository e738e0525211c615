"""Progress of long work on stderr: what runs, how far it is, how long it will still take.

On a terminal one line is redrawn; elsewhere a stage that runs long leaves a line every half minute, and each finished
stage one. Nothing goes to stdout.
"""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TextIO

from r1v_export.errors import UsageError
from r1v_export.quoting import visible

_REDRAW_S = 0.1
_HEARTBEAT_S = 30.0
"""Between the lines of a stage that runs where there is no terminal."""

_LEAST_FRACTION = 0.01
"""Of a stage's work: how long the rest takes is not estimated from less in its first half minute."""


_ENOUGH_S, _ENOUGH_FRACTION = 1.0, 0.1
"""Of a stage, before the time that is left is estimated from it."""
_LONG_S = 10.0
"""After which less of a stage is enough."""


class ProgressCallback(Protocol):
    """Is called as work is done."""

    def __call__(self, done: float, total: float, status: str = "") -> None:
        """
        Args:
            done: how much is done, in any unit.
            total: how much there is, in the same unit; 0 if unknown.
            status: the step that runs, in a few words for people; if empty, the last one still runs.
        """


def ignore_progress(done: float, total: float, status: str = "") -> None:
    """A ProgressCallback for callers without one."""


def subrange(on_progress: ProgressCallback, begin: float, end: float, name: str = "") -> ProgressCallback:
    """A callback for one of several pieces of work: it reports from `begin` to `end`, fractions of the whole.

    Args:
        name: of the piece; put before each status.
    """

    def report(done: float, total: float, status: str = "") -> None:
        fraction = begin + (end - begin) * (done / total if total else 0.0)
        on_progress(min(fraction, 1.0), 1.0, f"{name}: {status}" if name and status else status)

    return report


class Progress:
    """Shows the stages of one piece of work, in turn.

    Args:
        stages: how many there will be; may be set later.
        stream: where to, stderr by default.
        quiet: do not show stages.
        notes: show notes, such as warnings; unless quiet, if omitted.

    Attributes:
        expected_s: seconds that stages will take, by name, where somebody estimates them; those that have begun count
            no more.
    """

    def __init__(
        self, stages: int = 0, stream: TextIO | None = None, quiet: bool = False, notes: bool | None = None
    ) -> None:
        self.stages, self.number = stages, 0
        self.stream = stream or sys.stderr
        self.quiet, self.notes = quiet, not quiet if notes is None else notes
        self.live = self.stream.isatty() and not quiet
        self.expected_s: Mapping[str, float] = {}

    @property
    def later_s(self) -> float:
        """Seconds that the stages which have not begun will take, as far as they are estimated."""
        return sum(self.expected_s.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[Task]:
        """Show a stage while it runs; the task's `report` is its ProgressCallback."""
        task = Task(self, self._next_title(name))
        try:
            task.draw()
            with self._heartbeat(task):
                yield task
        except UsageError:
            self.write("", last=False)  # What was typed is wrong, and nothing was done that could have stopped.
            raise
        except BaseException:
            self.write(f"{task.title}: stopped after {task.elapsed}", last=True)
            raise
        self.write(f"{task.title}: {task.outcome or task.elapsed}", last=True)

    def skip(self, name: str, why: str) -> None:
        """Count a stage that need not run."""
        self.write(f"{self._next_title(name)}: {why}", last=True)

    def note(self, line: str) -> None:
        """Say something that stays."""
        if self.notes:
            self._print(*fitted(f"  {line}", self.stream, indent=4))

    @contextmanager
    def _heartbeat(self, task: Task) -> Iterator[None]:
        """Where no terminal shows how far a stage is, print it from time to time, also if it reports nothing."""
        if self.live or self.quiet:
            yield
            return
        ended = threading.Event()

        def print_states() -> None:
            while not ended.wait(_HEARTBEAT_S):
                self.write(task.line(), last=True)

        thread = threading.Thread(target=print_states, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _next_title(self, name: str) -> str:
        self.number += 1
        self.expected_s = {stage: seconds for stage, seconds in self.expected_s.items() if stage != name}
        return f"[{self.number}/{self.stages}] {name}"

    def write(self, line: str, last: bool) -> None:
        """Show a line: redrawn in place on a terminal, otherwise printed only if it is the last of its task."""
        if last and not self.quiet:
            self._print(line)
        elif self.live:
            # A line that is redrawn must not wrap: what it wraps to is never erased.
            self.stream.write(f"\r\x1b[K{visible(line)[: terminal_width(self.stream) - 1]}")
            self.stream.flush()

    def _print(self, *lines: str) -> None:
        """Lines that stay, in place of one that is redrawn."""
        self.stream.write(("\r\x1b[K" if self.live else "") + "".join(f"{visible(line)}\n" for line in lines))
        self.stream.flush()


class Task:
    """The running stage: `report` is called as its work is done; `outcome` replaces the time taken in the last line.

    Attributes:
        fraction: of its work that is done; it never shrinks, also when a step is tried again.
        status: the step that runs, if it is reported; seen only while it runs.
    """

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title = progress, title
        self.fraction, self.status = 0.0, ""
        self.outcome: str | None = None
        self.started, self._drawn = time.monotonic(), 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the task began."""
        return time.monotonic() - self.started

    @property
    def elapsed(self) -> str:
        """Time since the task began, formatted."""
        return duration(self.elapsed_s)

    def report(self, done: float, total: float, status: str = "") -> None:
        """A ProgressCallback. A new status is drawn at once: its step may take long, and report nothing meanwhile."""
        self.fraction = max(self.fraction, min(1.0, done / total if total else 0.0))
        is_new = status not in ("", self.status)
        self.status = status or self.status
        if is_new or time.monotonic() - self._drawn >= _REDRAW_S:
            self.draw()

    def draw(self) -> None:
        """Redraw the task's line."""
        self._drawn = time.monotonic()
        self.progress.write(self.line(), last=False)

    def line(self) -> str:
        """What runs, how far it is, how fast it gets on, and how long it will still take, with and without the stages
        after it."""
        status = f" ({self.status})" if self.status else ""
        return f"{self.title}{self._state()}{status}"

    def _state(self) -> str:
        if self.fraction < _LEAST_FRACTION and (not self.fraction or self.elapsed_s < _HEARTBEAT_S):
            return f": began {self.elapsed} ago" if self.elapsed_s >= _HEARTBEAT_S else " ..."
        facts = [f"{min(100 * self.fraction, 99):.0f} %"]  # what still runs is not done, whatever it rounds to
        if not self.progress.live and self.elapsed_s:
            facts.append(f"{_two_digits(6000 * self.fraction / self.elapsed_s)} %/min")
        return f": {', '.join([*facts, *self._time_left()])}"

    def _time_left(self) -> list[str]:
        """How long this stage will still take, and with all after it; nothing before enough of it has been measured."""
        elapsed_s, left_s = self.elapsed_s, self.elapsed_s * (1 - self.fraction) / self.fraction
        if not left_s:
            facts = ["almost done"]
        elif elapsed_s < _ENOUGH_S or (self.fraction < _ENOUGH_FRACTION and elapsed_s < _LONG_S):
            return []
        else:
            facts = [f"{duration(left_s)} left"]
        if later_s := self.progress.later_s:
            facts.append(f"{duration(left_s + later_s)} with all stages")
        return facts


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal that a stream goes to: $COLUMNS if it is set, and 80 where there is no terminal."""
    if (columns := os.environ.get("COLUMNS", "")).isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):  # no terminal, a closed stream, or one without a file
        return 80


def fitted(line: str, stream: TextIO, *, indent: int) -> list[str]:
    """A line, broken at spaces where it goes to a narrower terminal; words that are longer, such as paths, stay whole.

    Args:
        indent: of the lines after the first.
    """
    if not stream.isatty() or len(line) <= (width := terminal_width(stream)):
        return [line]
    spaces = " " * indent
    return textwrap.wrap(line, width, subsequent_indent=spaces, break_long_words=False, break_on_hyphens=False)


def _two_digits(number: float) -> str:
    """`0.069`, `6.9`, `69`, `690`: no exponent."""
    return f"{number:.2g}" if number < 99.5 else f"{number:.0f}"


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
