"""The parity gate: an engine of a bundle against PyTorch with the checkpoint's own files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1v_export.bundle import ENGINES, read_spec
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, Device
from r1v_export.cpus import thread_count
from r1v_export.model_spec import ModelSpec
from r1v_export.parity.comparison import check
from r1v_export.parity.endpoints import Endpoint
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.samples import ParitySample, held_out, synthetic
from r1v_export.parity.schema import CalibrationFacts, ParityReport
from r1v_export.parity.texts import Text, score_texts
from r1v_export.parity.tolerances import Gate
from r1v_export.pipeline.calibration import fake_quantize
from r1v_export.processing.pipeline_document import describe_pipeline, open_files
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.progress import ProgressCallback
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.dataset import CalibrationSample, prepare
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.mixed_precision.search import SENSITIVITY
from r1v_export.quantization.mixed_precision.sensitivity import read_table
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.targets import registry


def gate_names(checkpoint: Checkpoint, artifact: Artifact | None, options: CheckOptions) -> tuple[Gate, ...]:
    """The gates of an engine: what the graphs say, and for a quantized model also the original one, unless the
    checkpoint was quantized already. Only the original one where the target rounds weights by itself."""
    if options.own_weights is not None:
        return ("quantization",)
    return ("arithmetic", "quantization") if artifact is not None and checkpoint.quantized is None else ("arithmetic",)


def reference_of(gate: Gate, checkpoint: Checkpoint, artifact: Artifact | None, device: Device) -> Endpoint:
    """What the engines of a bundle are compared with at a gate: PyTorch computing what the graphs say, or the original
    model."""
    return reference_endpoint(checkpoint, device, artifact if gate == "arithmetic" else None)


def reference_endpoint(checkpoint: Checkpoint, device: Device, artifact: Artifact | None = None) -> Endpoint:
    """PyTorch in float32, with the checkpoint's own tokenizer and settings; fake-quantized where there is an
    artifact."""
    import torch

    torch.set_num_threads(thread_count().count)
    spec, model = checkpoint.spec, load(checkpoint).to(device)
    if artifact is not None:
        fake_quantize(model, artifact)
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    pipeline = describe_pipeline(spec, tokenizer, checkpoint.generation_config)
    return Endpoint(ReferenceEngine(model), tokenizer, pipeline)


def candidate_endpoint(folder: Path, target: str, device: Device) -> Endpoint:
    """A built engine, with the files of the bundle in `folder`, which need not be finished."""
    spec = read_spec(folder)
    engine = registry.get_target(target).open(folder / ENGINES / target, spec, device)
    return Endpoint(engine, *open_files(folder))


@dataclass(frozen=True)
class GeneratedQuestions:
    """The questions: held-out ones for the shipped model, synthetic images for all others."""

    checkpoint: Checkpoint
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[ParitySample]:
        if self.checkpoint.source.kind == "builtin":
            return held_out(self.count)
        return synthetic(self.count, self.checkpoint.spec.tiling.tile_size)


TEXTS = 8
"""Number of replies by which an imported quantized checkpoint is rated."""


def texts(checkpoint: Checkpoint) -> tuple[CalibrationSample, ...]:
    """Correct replies to generated questions, for an imported quantized checkpoint: no other model shows whether its
    quantized values are read correctly. Nothing for other checkpoints."""
    if checkpoint.quantized is None:
        return ()
    return prepare(read_examples(None, TEXTS), checkpoint).samples


def check_options(
    config: BuildConfig, target: str, spec: ModelSpec, artifact: Artifact | None, *, max_new_tokens: int
) -> CheckOptions:
    """What chooses the limits of a bundle's engine, but for the gate."""
    numerics = registry.get_target(target).numerics(config, spec)
    quantized_inputs = artifact is not None and (artifact.quantizes_inputs or numerics.rounds_inputs)
    return CheckOptions(
        config.precision,
        numerics.compute,
        quantized_inputs,
        own_weights=numerics.own_weights,
        max_new_tokens=max_new_tokens,
    )


def require_calibrated_scales(graphs: Path, artifact: Artifact | None) -> None:
    """Check that the graphs hold the scales of the calibration, if there is one.

    Raises:
        ParityError: a graph holds another scale than the calibration; the error names the linear.
    """
    if artifact is not None:
        from r1v_export.quantization.apply.onnx_check import require_calibrated_scales as require

        require(graphs, artifact)


def calibration_facts(artifact: Artifact | None) -> CalibrationFacts | None:
    """What a report says of the calibration, None where nothing is quantized."""
    if artifact is None:
        return None
    path = artifact.folder / SENSITIVITY
    return CalibrationFacts(
        recipe=artifact.recipe.name,
        samples=len(artifact.stats.samples),
        warnings=artifact.stats.warnings,
        sensitivity=read_table(path) if path.is_file() else None,
    )


def compare(
    reference: Endpoint,
    candidate: Endpoint,
    samples: Iterable[ParitySample],
    options: CheckOptions,
    on_progress: ProgressCallback,
    calibration: CalibrationFacts | None = None,
    texts: Sequence[Text] = (),
) -> ParityReport:
    """`parity.check`, with what the page says of the calibration.

    Args:
        texts: replies that the reference must find likely as well, `texts(checkpoint)`.
    """
    report = check(reference, candidate, samples, options, on_progress)
    return report.model_copy(update={"calibration": calibration, "texts": score_texts(reference, texts)})
