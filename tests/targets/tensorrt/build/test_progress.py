"""The builder's nested phases as hundredths that only grow and end at 100, and as words."""

from __future__ import annotations

from r1v_export.targets.tensorrt.build.progress import Phases, Shares


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


def test_parts_add_up_to_a_hundred_however_little_they_tell() -> None:
    told: list[tuple[int, str]] = []
    shares = Shares(lambda hundredths, doing="": told.append((hundredths, doing)))
    for name, share in (("vision", 0.45), ("projector", 0.05), ("decoder", 0.5)):
        with shares.part(name, share) as tell:
            tell(0.3, "compiling")
            tell(0.1, "compiling")
            tell(0.1, "writing")
    assert sum(hundredths for hundredths, _ in told) == 100
    assert [doing for _, doing in told][:3] == ["vision: compiling", "vision: writing", "vision: done"]
    assert len(told) == 9  # nothing is said twice


def test_a_real_build_names_the_module_that_is_read_and_the_phase_that_runs(fp32) -> None:
    said = [doing for _, doing in fp32.told]
    layer = "reading language_model.model.layers.1.self_attn"
    assert (
        f"vision: {layer.replace('language_model.model', 'vision_model.encoder').replace('self_attn', 'attn')}" in said
    )
    assert f"decoder: {layer}" in said
    assert said.index(f"decoder: {layer}") < said.index("decoder: Building engine")
    assert sum(hundredths for hundredths, _ in fp32.told) == 100
