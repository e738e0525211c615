"""The builder's nested phases as a fraction and as words."""

from __future__ import annotations

from r1v_export.targets.tensorrt.build.progress import Phases


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


def test_the_phase_that_began_last_is_what_runs_and_its_parent_after_it() -> None:
    phases = Phases()
    assert phases.innermost == ""
    phases.start("build", None, 2)
    phases.start("compile", "build", 4)
    assert phases.innermost == "compile"
    phases.finish("compile")
    assert phases.innermost == "build"


def test_a_step_of_a_phase_that_was_never_started_changes_nothing() -> None:
    phases = Phases()
    phases.step("unknown", 3)
    phases.finish("unknown")
    assert phases.fraction == 0


def test_a_real_build_names_the_module_that_is_read_and_the_phase_that_runs(fp32) -> None:
    said = [status for _, status in fp32.reported]
    layer = "reading language_model.model.layers.1.self_attn"
    assert (
        f"vision: {layer.replace('language_model.model', 'vision_model.encoder').replace('self_attn', 'attn')}" in said
    )
    assert f"decoder: {layer}" in said
    assert said.index(f"decoder: {layer}") < said.index("decoder: Building engine")
    assert fp32.reported[-1] == (1.0, "decoder: done")
