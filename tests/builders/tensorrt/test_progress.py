"""The builder's nested phases as hundredths that only grow and end at 100."""

from __future__ import annotations

from r1v_export.builders.tensorrt.progress import Phases, Shares


def test_steps_of_a_nested_phase_share_its_parents_step() -> None:
    phases = Phases()
    phases.start("build", None, 2)
    phases.start("compile", "build", 4)
    phases.step("compile", 0)
    assert phases.fraction == 1 / 8
    phases.finish("compile")
    assert phases.fraction == 1 / 2
    phases.step("build", 0)
    phases.step("build", 1)
    assert phases.fraction == 1


def test_a_step_of_a_phase_that_was_never_started_changes_nothing() -> None:
    phases = Phases()
    phases.step("unknown", 3)
    phases.finish("unknown")
    assert phases.fraction == 0


def test_parts_add_up_to_a_hundred_however_little_they_tell() -> None:
    told: list[int] = []
    shares = Shares(told.append)
    for share in (0.45, 0.05, 0.5):
        with shares.part(share) as done:
            done(0.3)
            done(0.1)
    assert sum(told) == 100
    assert all(step > 0 for step in told)
