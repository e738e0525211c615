"""The builder's nested phases as a fraction of its work, and in words."""

from __future__ import annotations

from typing import Any

from r1v_export.progress import ProgressCallback
from r1v_export.targets.tensorrt.library import Library


def monitor(library: Library, on_progress: ProgressCallback) -> Any:
    """An IProgressMonitor that reports how much of a build is done, and which phase runs.

    Phases are nested; a phase's steps share its parent's current step evenly.
    """

    class Monitor(library.module.IProgressMonitor):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            library.module.IProgressMonitor.__init__(self)
            self.phases = Phases()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.start(phase_name, parent_phase, num_steps)
            on_progress(self.phases.fraction, 1.0, phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.phases.step(phase_name, step)
            on_progress(self.phases.fraction, 1.0, self.phases.innermost)
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
        """Begin a phase as one step of its parent."""
        begin, end = 0.0, 1.0
        if parent in self._phases:
            parent_begin, parent_end, parent_steps = self._phases[parent]
            width = (parent_end - parent_begin) / max(1, parent_steps)
            begin, end = self.fraction, min(parent_end, self.fraction + width)
        self._phases[name] = (begin, end, steps)

    def step(self, name: str, step: int) -> None:
        """Advance the fraction by one of a phase's steps."""
        if name in self._phases:
            begin, end, steps = self._phases[name]
            self.fraction = max(self.fraction, begin + (end - begin) * (step + 1) / max(1, steps))

    def finish(self, name: str) -> None:
        """End a phase and advance the fraction to its end."""
        if name in self._phases:
            self.fraction = max(self.fraction, self._phases.pop(name)[1])
