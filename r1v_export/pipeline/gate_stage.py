"""The stage of a build that compares a target's engine with PyTorch: what it reads, takes and warns of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from r1v_export.errors import CapabilityError
from r1v_export.manifest import PASSED
from r1v_export.pipeline import provenance
from r1v_export.pipeline.estimate import GateWork, gate_s
from r1v_export.pipeline.rates import measured_rates
from r1v_export.pipeline.stage import Needs, Stage, StageInputs
from r1v_export.pipeline.stage_code import RUN_CODE
from r1v_export.progress import ProgressCallback
from r1v_export.targets import registry
from r1v_export.targets.images import encoding_target, pair_name, parts_of

if TYPE_CHECKING:
    from r1v_export.pipeline.stages import Build


def gate_stage(job: Build, target: str, after: Sequence[str]) -> Stage:
    """The parity gate of a target.

    Args:
        after: stages whose files it reads.
    """
    return Stage(
        f"{target}-parity",
        partial(_check_engine, job, target),
        code=RUN_CODE,
        tools=(*provenance.TRACING_TOOLS, *_tools(job, target), *provenance.INPUT_TOOLS),
        settings={
            "parity": job.config.parity.model_dump(mode="json"),
            "device": job.config.device,
            "label": asdict(job.label),
            "images": why_images_are_not_compared(job, target),
        },
        sources=tuple(job.source_files()),
        after=tuple(after),
        records_hashes=True,
        is_task=True,
        seconds=partial(_seconds, job, target),
        needs=partial(_needs, job, target),
        notes=partial(_warnings, job, target),
    )


def _check_engine(job: Build, target: str, folder: Path, inputs: StageInputs, on_progress: ProgressCallback) -> None:
    from r1v_export.pipeline.build_gate import check_engine

    check_engine(job, target, folder / job.report_folder(target), inputs, on_progress)


def _seconds(job: Build, target: str) -> float:
    if _needs(job, target).obstacle:
        return 0.0
    # A checkpoint that is quantized already has no original to compare with; rating it on texts takes as long.
    comparisons = 2 if job.config.quantized else 1
    comparisons += why_images_are_not_compared(job, target) is None
    work = GateWork.of(job.schemes, comparisons)
    return gate_s(job.gate(target), job.checkpoint.spec, job.config.parity, measured_rates(), work)


def _needs(job: Build, target: str) -> Needs:
    from r1v_export.pipeline.parity_gate import gate_memory_of

    try:
        memory = gate_memory_of(job.config, target, job.checkpoint.spec, *job.possible_schemes)
        return Needs(memory_bytes=getattr(memory, job.gate(target)))
    except CapabilityError as error:
        return Needs(obstacle=error)


def _warnings(job: Build, target: str, bundle: Path) -> tuple[str, ...]:
    from r1v_export.parity.report import read_report

    return read_report(bundle / job.report_folder(target)).warnings


def _image_target(job: Build, target: str) -> str | None:
    return registry.get_target(target).image_target(job.config, job.schemes)


def _tools(job: Build, target: str) -> tuple[str, ...]:
    images = _image_target(job, target)
    return (*registry.tools(target), *(registry.tools(images) if images else ()))


def why_images_are_not_compared(job: Build, target: str) -> str | None:
    """Why a target's gate does not compare its engine with images encoded by another one; None if it does."""
    images = _image_target(job, target)
    if images is None:
        return "nothing else encodes its images"
    if (unchecked := job.unchecked(target)) is not None:
        return unchecked
    try:
        streamed = job.gate(target) == "streamed"
    except CapabilityError as error:
        return error.what
    if streamed:
        return "the gate was streamed"
    products = registry.get_target(target).image_products(job.config)
    reasons = [encoding_target(images).why_not_images(each) for each in products]
    return None if None in reasons else reasons[-1]


def image_verdicts(job: Build) -> dict[str, str]:
    """What is known of each engine whose images another one can encode, as `Manifest.image_parity` has it."""
    from r1v_export.parity.report import JSON_FILE, read_report

    verdicts = {}
    for target in job.config.targets:
        parts, folder = parts_of(job.out, target, job.config), job.out / job.report_folder(target) / "images"
        if not parts:
            continue
        why_not = why_images_are_not_compared(job, target)
        if why_not is None and not (folder / JSON_FILE).is_file():
            why_not = "the machine that compared the engine could not"  # one of a cluster
        if why_not is None:
            report = read_report(folder)
            verdicts[report.candidate] = f"its gate failed at {report.first_bad}" if report.first_bad else PASSED
        else:
            verdicts |= {pair_name(target, part.title): why_not for part in parts}
    return verdicts
