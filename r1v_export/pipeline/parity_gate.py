"""The parity gate: an engine of a bundle against PyTorch with the checkpoint's own files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1v_export.builders import registry
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.spec import ModelSpec
from r1v_export.config import BuildConfig, Device
from r1v_export.parity.comparison import check
from r1v_export.parity.samples import Sample, held_out, synthetic
from r1v_export.parity.schema import CalibrationFacts, ParityReport
from r1v_export.parity.sides import Side
from r1v_export.parity.tolerances import Gate
from r1v_export.pipeline.bundle import ENGINES, read_generation_config, read_spec
from r1v_export.pipeline.calibration import fake_quantise
from r1v_export.pipeline.stage import Advance
from r1v_export.reference.prompt import TEMPLATES
from r1v_export.reference.tokenizer import Tokenizer

if TYPE_CHECKING:
    from r1v_export.quantization.artefact import Artefact


def gates(checkpoint: Checkpoint, artefact: Artefact | None, device: Device) -> Iterator[tuple[Gate, Side]]:
    """What the engines of a bundle are held to: PyTorch computing what the graphs say, and where that is a quantised
    model, also the original one, unless the checkpoint came quantised. Each is loaded when its turn comes."""
    yield "arithmetic", reference_side(checkpoint, device, artefact)
    if artefact is not None and checkpoint.quantised is None:
        yield "quantisation", reference_side(checkpoint, device)


def reference_side(checkpoint: Checkpoint, device: Device, artefact: Artefact | None = None) -> Side:
    """PyTorch in float32, with the checkpoint's own tokenizer and settings; fake-quantised where there is an
    artefact."""
    from r1v_export.reference.model import ReferenceEngine, load

    spec, model = checkpoint.spec, load(checkpoint).to(device)
    if artefact is not None:
        fake_quantise(model, artefact)
    tokenizer, template = Tokenizer.from_folder(checkpoint.folder), TEMPLATES[spec.template]
    return Side(ReferenceEngine(model), tokenizer, spec, template, checkpoint.generation_config)


def candidate_side(folder: Path, target: str, device: Device) -> Side:
    """A built engine, with the files of the bundle in `folder`, which need not be finished."""
    spec = read_spec(folder)
    engine = registry.builder(target).open(folder / ENGINES / target, spec, device)
    tokenizer, template = Tokenizer.from_folder(folder), TEMPLATES[spec.template]
    return Side(engine, tokenizer, spec, template, read_generation_config(folder))


def questions(checkpoint: Checkpoint, count: int) -> Iterator[Sample]:
    """What both sides are asked: held-out questions for the shipped model, made-up pictures for all others."""
    if checkpoint.source.kind == "builtin":
        return held_out(count)
    return synthetic(count, checkpoint.spec.tiling.tile_size)


def rounding(config: BuildConfig, target: str, spec: ModelSpec, artefact: Artefact | None) -> dict[str, Any]:
    """What `parity.check` chooses the limits of a bundle's engine by."""
    arithmetic = registry.builder(target).arithmetic(config, spec)
    quantised_inputs = artefact is not None and (artefact.quantises_inputs or arithmetic.rounds_inputs)
    return {"precision": config.precision, "compute": arithmetic.compute, "quantised_inputs": quantised_inputs}


def require_calibrated_scales(graphs: Path, artefact: Artefact | None) -> None:
    """
    Raises:
        ParityError: a graph holds another scale than the calibration; the error names the linear.
    """
    if artefact is not None:
        from r1v_export.quantization.graph_check import require_calibrated_scales as require

        require(graphs, artefact)


def calibration_facts(artefact: Artefact | None) -> CalibrationFacts | None:
    """What a report says of the calibration, None where nothing is quantised."""
    if artefact is None:
        return None
    from r1v_export.quantization.mixed import SENSITIVITY
    from r1v_export.quantization.sensitivity import read_table

    path = artefact.folder / SENSITIVITY
    return CalibrationFacts(
        recipe=artefact.recipe.name,
        samples=len(artefact.stats.samples),
        warnings=artefact.stats.warnings,
        sensitivity=read_table(path) if path.is_file() else None,
    )


def compare(
    reference: Side,
    candidate: Side,
    samples: Iterable[Sample],
    advance: Advance,
    calibration: CalibrationFacts | None = None,
    **options: Any,
) -> ParityReport:
    """`parity.check`, with progress as stages tell it: `advance` by the samples done since the last call."""
    done = 0

    def on_progress(samples_done: int) -> None:
        nonlocal done
        advance(samples_done - done)
        done = samples_done

    report = check(reference, candidate, samples, on_progress=on_progress, **options)
    return report.model_copy(update={"calibration": calibration})
