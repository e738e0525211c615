"""The builder's phases as hundredths of a stage's work, and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from r1v_export.targets.interface import Advance
from r1v_export.targets.tensorrt.library import Library

Tell = Callable[[float, str], None]
"""Is told how much of a plan's work is done, 0 to 1, and what is at work now."""


class Shares:
    """Turns parts of a whole, each with its own share, into whole hundredths that never exceed 100."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._told, self._doing = 0, ""
        self._begun, self._share, self._name = 0.0, 1.0, ""

    @contextmanager
    def part(self, name: str, share: float) -> Iterator[Tell]:
        """Within it, what it yields is to be told of the part's progress."""
        begun, self._share, self._name = self._begun, share, name
        yield self.tell
        self.tell(1.0, "done")
        self._begun = begun + share

    def tell(self, fraction: float, doing: str) -> None:
        hundredths = min(100, round(100 * (self._begun + self._share * min(fraction, 1.0))))
        more, doing = max(0, hundredths - self._told), f"{self._name}: {doing}"
        if more or doing != self._doing:
            self._advance(more, doing)
            self._told, self._doing = self._told + more, doing


def monitor(library: Library, tell: Tell) -> Any:
    """An IProgressMonitor that tells how much of a build is done, and which phase runs.

    Phases are nested; a phase's steps share its parent's current step evenly.
    """

    class Monitor(library.module.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            library.module.IProgressMonitor.__init__(self)
            self.phases = Phases()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.start(phase_name, parent_phase, num_steps)
            tell(self.phases.fraction, phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.phases.step(phase_name, step)
            tell(self.phases.fraction, self.phases.innermost)
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

    @property
    def innermost(self) -> str:
        """The phase that began last of those that run."""
        return next(reversed(self._phases), "")

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
