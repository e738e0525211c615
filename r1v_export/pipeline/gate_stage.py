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
from r1v_export.pipeline.estimate import GateWork, gate_s, pages_s
from r1v_export.pipeline.rates import measured_flops, measured_rates
from r1v_export.pipeline.stage import Needs, Stage, StageInputs
from r1v_export.pipeline.stage_code import RUN_CODE
from r1v_export.progress import ProgressCallback
from r1v_export.targets import registry
from r1v_export.targets.decoders import decoder_part, lending_target
from r1v_export.targets.images import decoder_of_pair, encoding_target, named_pair, parts_of

if TYPE_CHECKING:
    from r1v_export.config import ImageProducts
    from r1v_export.parity.tolerances import Gate
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
            "images": _image_settings(job, target),
            **_decoder_settings(job, target),
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
    return _comparing_s(job, target, measured_rates().flops("float32")) + pages_s(_reports(job, target))


def _reports(job: Build, target: str) -> int:
    """How many comparisons are reported."""
    spec, imported = job.checkpoint.spec, job.checkpoint.quantized is not None
    own_weights = registry.get_target(target).numerics(job.config, spec).own_weights is not None
    of_engine = 2 if job.config.quantized and not imported and not own_weights else 1
    pairs = (why_images_are_not_compared(job, target), why_decoder_is_not_compared(job, target))
    return of_engine + pairs.count(None)


def _comparing_s(job: Build, target: str, flops: float) -> float:
    # A checkpoint that is quantized already has no original to compare with; rating it on texts takes as long.
    work = GateWork.of(job.planned_schemes, _reports(job, target) + (job.checkpoint.quantized is not None))
    return gate_s(job.gate(target), job.checkpoint.spec, job.config.parity, flops, work)


def compared_share(job: Build, target: str) -> float:
    """Of a gate's time, estimated: all but what its pages take."""
    comparing = _comparing_s(job, target, measured_flops("float32"))
    return comparing / (comparing + pages_s(_reports(job, target)))


def _needs(job: Build, target: str) -> Needs:
    from r1v_export.pipeline.parity_gate import gate_memory_of

    try:
        memory = gate_memory_of(job.config, target, job.checkpoint.spec, *job.possible_schemes)
        kind = job.gate(target)
        return Needs(getattr(memory, kind), scratch_bytes=memory.spilled if kind == "streamed" else 0)
    except CapabilityError as error:
        return Needs(obstacle=error)


def _warnings(job: Build, target: str, bundle: Path) -> tuple[str, ...]:
    from r1v_export.parity.report import read_report

    return read_report(bundle / job.report_folder(target)).warnings


def _image_targets(job: Build, target: str) -> tuple[str, ...]:
    return registry.get_target(target).image_targets(job.config, job.schemes)


def _decoder_target(job: Build, target: str) -> str | None:
    kv_cache = job.recipe.kv_cache if job.recipe else None
    return registry.get_target(target).decoder_target(job.config, job.schemes, kv_cache)


def _image_settings(job: Build, target: str) -> str | list[str] | None:
    """What decides which images are compared. Where one target alone encodes them, that is why none are."""
    names, why_not = _image_targets(job, target), why_images_are_not_compared(job, target)
    if why_not is not None or len(names) < 2:
        return why_not
    parts = _image_parts(job, target)
    return [f"{name} in {each}" for name, each in parts if encoding_target(name).why_not_images(each) is None]


def _decoder_settings(job: Build, target: str) -> dict[str, str]:
    """What decides how another decoder is compared. Nothing for engines for which nothing else decodes."""
    if (decoder := _decoder_target(job, target)) is None:
        return {}
    return {"decoder": why_decoder_is_not_compared(job, target) or lending_target(decoder).decodes_with()}


def _tools(job: Build, target: str) -> tuple[str, ...]:
    decoder = _decoder_target(job, target)
    names = (target, *_image_targets(job, target), *([decoder] if decoder else []))
    return tuple(dict.fromkeys(tool for name in names for tool in registry.tools(name)))


def why_images_are_not_compared(job: Build, target: str) -> str | None:
    """Why a target's gate does not compare its engine with images encoded by another part; None if it does."""
    parts = _image_parts(job, target)
    if not parts:
        return "nothing else encodes its images"
    if (why_not := _why_no_pair(job, target)) is not None:
        return why_not
    reasons = [encoding_target(name).why_not_images(products) for name, products in parts]
    return None if None in reasons else reasons[0]


def _image_parts(job: Build, target: str) -> list[tuple[str, ImageProducts]]:
    """What may encode images besides a target's engine: targets, and what they round operands to."""
    products = registry.get_target(target).chosen_image_products(job.config)
    return [(name, each) for name in _image_targets(job, target) for each in products]


def why_decoder_is_not_compared(job: Build, target: str) -> str | None:
    """Why a target's gate does not compare its engine with another one that decodes; None if it does."""
    decoder = _decoder_target(job, target)
    if decoder is None:
        return "nothing else decodes for it"
    return _why_no_pair(job, target) or lending_target(decoder).why_not_decoder()


def _why_no_pair(job: Build, target: str) -> str | None:
    """Why a target's gate compares its engine with no other one; None if it may."""
    if (unchecked := job.unchecked(target)) is not None:
        return unchecked
    try:
        return "the gate was streamed" if job.gate(target) == "streamed" else None
    except CapabilityError as error:
        return error.what


def image_verdicts(job: Build) -> dict[str, str]:
    """What is known of each engine whose images another part can encode, as `Manifest.image_parity` has it."""
    verdicts: dict[str, str] = {}
    for target in job.config.targets:
        if parts := parts_of(job.out, target):
            candidate, verdict = _verdict(job, target, "images", why_images_are_not_compared(job, target))
            of_all = _why_no_pair(job, target)
            for part in parts:
                pair, why_not = named_pair(target, images=part.title), of_all or part.why_not_here()
                if pair == candidate or (candidate is None and why_not is None):
                    verdicts[pair] = verdict
                elif why_not is not None:
                    verdicts[pair] = why_not
    return verdicts


def decoder_verdicts(job: Build) -> dict[str, str]:
    """The same of each engine for which another one can decode, as `Manifest.decoder_parity` has it."""
    verdicts: dict[str, str] = {}
    for target in job.config.targets:
        if (part := decoder_part(job.out, target)) is not None:
            candidate, verdict = _verdict(job, target, "decoder", why_decoder_is_not_compared(job, target))
            decoder = decoder_of_pair(candidate) if candidate else part.title
            verdicts[named_pair(target, decoder=decoder)] = verdict
    return verdicts


def _verdict(job: Build, target: str, gate: Gate, why_not: str | None) -> tuple[str | None, str]:
    """What a pair's gate compared, and PASSED or where it failed; None where it did not run, and why."""
    from r1v_export.parity.report import JSON_FILE, read_report

    folder = job.out / job.report_folder(target) / gate
    if why_not is None and not (folder / JSON_FILE).is_file():
        why_not = "the machine that compared the engine could not"  # one of a cluster
    if why_not is not None:
        return None, why_not
    report = read_report(folder)
    return report.candidate, f"its gate failed at {report.first_bad}" if report.first_bad else PASSED
