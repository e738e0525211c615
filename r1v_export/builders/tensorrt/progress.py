"""The builder's phases as hundredths of a stage's work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from r1v_export.builders.tensorrt.library import Library


class Shares:
    """Turns parts of a whole, each with its own share, into whole hundredths that never exceed 100."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._told = 0
        self._begun, self._share = 0.0, 1.0

    @contextmanager
    def part(self, share: float) -> Iterator[Callable[[float], None]]:
        """Within it, call what it yields with how much of the part is done, 0 to 1."""
        begun, self._share = self._begun, share
        yield self.done
        self.done(1.0)
        self._begun = begun + share

    def done(self, fraction: float) -> None:
        hundredths = min(100, round(100 * (self._begun + self._share * min(fraction, 1.0))))
        if hundredths > self._told:
            self._advance(hundredths - self._told)
            self._told = hundredths


def monitor(library: Library, done: Callable[[float], None]) -> Any:
    """An IProgressMonitor that tells how much of a build is done.

    Phases are nested; a phase's steps share its parent's current step evenly.
    """

    class Monitor(library.module.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            library.module.IProgressMonitor.__init__(self)
            self.phases = Phases()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.phases.step(phase_name, step)
            done(self.phases.fraction)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.phases.finish(phase_name)

    return Monitor()


class Phases:
    """How far a tree of phases is: each is a name, its parent, its number of steps and the steps done."""

    def __init__(self) -> None:
        self._phases: dict[str, tuple[float, float, int]] = {}
        """Name -> where it begins and ends within the whole, and its steps."""
        self.fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        begin, end = 0.0, 1.0
        if parent in self._phases:
            parent_begin, parent_end, parent_steps = self._phases[parent]
            width = (parent_end - parent_begin) / max(1, parent_steps)
            begin, end = self.fraction, min(parent_end, self.fraction + width)
        self._phases[name] = (begin, end, steps)

    def step(self, name: str, step: int) -> None:
        if name in self._phases:
            begin, end, steps = self._phases[name]
            self.fraction = max(self.fraction, begin + (end - begin) * (step + 1) / max(1, steps))

    def finish(self, name: str) -> None:
        if name in self._phases:
            self.fraction = max(self.fraction, self._phases.pop(name)[1])
