"""The parity gate: an engine of a bundle against PyTorch with the checkpoint's own files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import length_hint
from pathlib import Path
from typing import Literal, get_args

from r1v_export.bundle import ENGINES, read_spec
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import EMBED_TOKENS
from r1v_export.config import BuildConfig, Compute, Device
from r1v_export.cpus import thread_count
from r1v_export.files import explain_full_disk
from r1v_export.gpus import require_device
from r1v_export.model_spec import ModelSpec
from r1v_export.parity.boundaries import BatchShares
from r1v_export.parity.comparison import check
from r1v_export.parity.endpoints import BlockwiseEndpoint, Endpoint
from r1v_export.parity.options import PAIRS, CheckOptions
from r1v_export.parity.samples import ParitySample, held_out, synthetic
from r1v_export.parity.schema import CalibrationFacts, ParityReport
from r1v_export.parity.streamed import StreamedGate, check_streamed
from r1v_export.parity.texts import fewest_texts, score_texts, score_texts_by_blocks
from r1v_export.parity.tolerances import Gate, ToleranceProfile
from r1v_export.pipeline.calibration import fake_quantize
from r1v_export.pipeline.estimate import GateWork, comparison_seconds, streamed_seconds
from r1v_export.pipeline.gate_memory import GateMemory, gate_memory
from r1v_export.pipeline.held_weights import HeldWeights
from r1v_export.pipeline.rates import measured_flops
from r1v_export.processing.pipeline_document import describe_pipeline, open_files
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.progress import ProgressCallback, subrange
from r1v_export.quantization.apply.blockwise import reference_blocks
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.dataset import CalibrationSample, prepare
from r1v_export.quantization.calibration.plan import reads_samples
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.groups import LM_HEAD_LINEAR
from r1v_export.quantization.mixed_precision.search import SENSITIVITY
from r1v_export.quantization.mixed_precision.sensitivity import read_table
from r1v_export.quantization.recipe import Recipe, Scheme
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.runner.paired_engine import PairedEngine
from r1v_export.serialized.pipeline import PipelineDocument
from r1v_export.targets import registry
from r1v_export.targets.decoders import DecoderPart
from r1v_export.targets.images import ImageEncoder, named_pair
from r1v_export.targets.interface import OpensBlocks


def gate_names(recipe: Recipe | None, own_weights: ToleranceProfile | None) -> tuple[Gate, ...]:
    """The gates of an engine: what the graphs say, and for a quantized model also the original one, unless the
    checkpoint was quantized already. Only the original one where the target rounds weights by itself.

    Args:
        recipe: of the calibration; None where nothing is quantized.
        own_weights: of the target's `Numerics`.
    """
    if own_weights is not None:
        return ("quantization",)
    return ("arithmetic",) if recipe is None or recipe.is_imported else ("arithmetic", "quantization")


def reference_endpoint(checkpoint: Checkpoint, device: Device, artifact: Artifact | None = None) -> Endpoint:
    """PyTorch in float32, with the checkpoint's own tokenizer and settings; fake-quantized where there is an
    artifact."""
    import torch

    torch.set_num_threads(thread_count().count)
    require_device(device)
    model = load(checkpoint).to(device)
    if artifact is not None:
        fake_quantize(model, artifact)
    return Endpoint(ReferenceEngine(model), *_own_files(checkpoint))


def candidate_endpoint(
    folder: Path,
    target: str,
    device: Device,
    images: ImageEncoder | None = None,
    decoder: DecoderPart | None = None,
) -> Endpoint:
    """A built engine, with the files of the bundle in `folder`, which need not be finished.

    Args:
        images: what encodes images instead of it.
        decoder: what decodes instead of it.
    """
    spec = read_spec(folder)
    engine = registry.open_engine(folder, target, spec, device)
    if images is not None or decoder is not None:
        name = named_pair(target, images=images.title if images else None, decoder=decoder.title if decoder else None)
        open_images = partial(images.open, folder, spec, device) if images else None
        open_decoder = partial(decoder.open, folder, spec) if decoder else None
        engine = PairedEngine(engine, name, open_images, open_decoder)
    return Endpoint(engine, *open_files(folder))


def _quantizes_decoder_only(artifact: Artifact) -> bool:
    """Whether the fake-quantized model has the original's tower, projector and embeddings."""
    changed = {*(f"{linear}.weight" for linear in artifact.schemes), *artifact.overrides}
    return all(name.startswith("language_model.") and name != EMBED_TOKENS for name in changed)


def _own_files(checkpoint: Checkpoint) -> tuple[Tokenizer, PipelineDocument]:
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    return tokenizer, describe_pipeline(checkpoint.spec, tokenizer, checkpoint.generation_config)


def choose_gate(
    config: BuildConfig,
    target: str,
    spec: ModelSpec,
    *schemes: Mapping[str, Scheme],
    worker_bytes: int | None = None,
) -> Literal["whole", "streamed"]:
    """How a target's engine is compared: as `config.parity.gate` says, else whole where that fits into memory.

    Args:
        schemes: of every quantized linear; of all recipes that a budget may choose from.
        worker_bytes: free memory of the worker that compares; this process's if omitted.

    Raises:
        CapabilityError: it does not fit into memory, or the target's engines cannot be held a block at a time.
    """
    memory = gate_memory_of(config, target, spec, *schemes)
    return memory.choose(config.parity.gate, isinstance(registry.get_target(target), OpensBlocks), worker_bytes)


def gate_memory_of(config: BuildConfig, target: str, spec: ModelSpec, *schemes: Mapping[str, Scheme]) -> GateMemory:
    """What the gates of a target's engine hold in memory, at most, with any of some schemes."""
    held = HeldWeights.of(config, target, spec)
    found = [gate_memory(spec, each, config.parity, held) for each in schemes]
    return GateMemory(*(max(getattr(memory, name) for memory in found) for name in ("whole", "streamed", "spilled")))


@dataclass(frozen=True)
class WholeShares:
    """How the time of a whole comparison is divided, by the plan's estimate, for its progress.

    Attributes:
        opened: when both engines are.
        compared: when all questions are; what is left rates an imported checkpoint on texts.
    """

    opened: float
    compared: float
    of_batch: BatchShares

    @classmethod
    def of(cls, spec: ModelSpec, questions: int, max_new_tokens: int, replies: int) -> WholeShares:
        """Estimate them.

        Args:
            replies: on which the reference is rated.
        """
        parts = comparison_seconds(spec, max(questions, 1), max_new_tokens, measured_flops("float32"))
        decoder = parts.prefill + parts.decoding
        # One engine of two encodes, and decodes once of three times.
        rating = replies / max(questions, 1) * (parts.encoding / 2 + decoder / 3)
        total = parts.total + rating
        of_batch = BatchShares(parts.encoding / parts.comparing, parts.prefill / decoder)
        return cls(parts.opening / total, parts.total / total, of_batch)


@dataclass(frozen=True)
class GateRun:
    """A bundle's engine and what it is compared with.

    Attributes:
        folder: of the bundle, which need not be finished.
        artifact: its calibration, None where nothing is quantized.
        device: where engine and reference compute.
    """

    folder: Path
    target: str
    checkpoint: Checkpoint
    artifact: Artifact | None
    device: Device

    def whole(
        self,
        samples: Iterable[ParitySample],
        options: CheckOptions,
        on_progress: ProgressCallback,
        images: ImageEncoder | None = None,
        decoder: DecoderPart | None = None,
    ) -> ParityReport:
        """Compare the whole engine with the whole reference of `options.gate`, which is held no longer.

        Args:
            images: what encodes images instead of the engine, in the gates of pairs, which are the last ones.
            decoder: what decodes instead of it, likewise.
        """
        on_progress(0.0, 1.0, "opening both engines")
        replies = () if options.gate in PAIRS else texts(self.checkpoint)
        shares = WholeShares.of(self.checkpoint.spec, length_hint(samples, 1), options.max_new_tokens, len(replies))
        reference = reference_endpoint(self.checkpoint, self.device, self._artifact_of(options.gate))
        on_progress(shares.opened / 2, 1.0)
        part = subrange(on_progress, shares.opened, shares.compared)
        candidate = self._with(images, decoder) if options.gate in PAIRS else self._candidate
        part(0.0, 1.0, "comparing answers")
        report = check(reference, candidate, samples, options, part, shares.of_batch)
        rated = score_texts(reference, replies, subrange(on_progress, shares.compared, 1.0))
        return report.model_copy(update={"texts": rated})

    def streamed(
        self,
        samples: Iterable[ParitySample],
        gates: Sequence[CheckOptions],
        work: Path,
        on_progress: ProgressCallback,
    ) -> list[ParityReport]:
        """Compare block by block: the engine takes the samples through its blocks once for all gates.

        Args:
            gates: each with its `gate`.
            work: folder for activations that memory does not hold; it is removed.
        """
        import torch

        torch.set_num_threads(thread_count().count)
        target, spec = registry.get_target(self.target), read_spec(self.folder)
        assert isinstance(target, OpensBlocks), "choose_gate refuses other targets"
        blocks = target.open_blocks(self.folder / ENGINES / self.target, spec, self.device)
        candidate = BlockwiseEndpoint(blocks, *open_files(self.folder))
        references = [reference_blocks(self.checkpoint, self._artifact_of(options.gate)) for options in gates]
        compared = [
            StreamedGate(BlockwiseEndpoint(reference, *_own_files(self.checkpoint)), options)
            for reference, options in zip(references, gates, strict=True)
        ]
        same_embeddings = self.artifact is None or _quantizes_decoder_only(self.artifact)
        replies = fewest_texts(texts(self.checkpoint))
        # Rating the replies takes them through all blocks of one engine once more.
        share = 1.0 - 1.0 / (len(gates) + 2) if replies else 1.0
        part = subrange(on_progress, 0.0, share)
        try:
            with explain_full_disk(work):
                reports = check_streamed(
                    compared,
                    candidate,
                    samples,
                    work,
                    part,
                    same_embeddings=same_embeddings,
                    tower_share=_tower_share(spec, samples, gates, same_embeddings),
                )
        finally:
            shutil.rmtree(work, ignore_errors=True)
        facts = score_texts_by_blocks(references[0], replies, subrange(on_progress, share, 1.0))
        return [report.model_copy(update={"texts": facts}) for report in reports]

    @cached_property
    def _candidate(self) -> Endpoint:
        return candidate_endpoint(self.folder, self.target, self.device)

    def _with(self, images: ImageEncoder | None, decoder: DecoderPart | None) -> Endpoint:
        """The engine together with what encodes images, and what decodes. The engine of the gates before goes,
        and with it its tower."""
        self.__dict__.pop("_candidate", None)
        return candidate_endpoint(self.folder, self.target, self.device, images, decoder)

    def _artifact_of(self, gate: Gate) -> Artifact | None:
        """What the reference computes: what the graphs say, or the original model."""
        return None if gate == "quantization" else self.artifact


def _tower_share(
    spec: ModelSpec, samples: Iterable[ParitySample], gates: Sequence[CheckOptions], same_embeddings: bool
) -> float:
    """Of a streamed gate's time, by the plan's estimate."""
    questions, work = max(length_hint(samples, 1), 1), GateWork(len(gates), 1 if same_embeddings else len(gates))
    return streamed_seconds(spec, questions, gates[0].max_new_tokens, measured_flops("float32"), work).tower_share


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
    config: BuildConfig,
    target: str,
    spec: ModelSpec,
    artifact: Artifact | None,
    *,
    max_new_tokens: int,
    vision_target: str | None = None,
) -> CheckOptions:
    """What chooses the limits of a bundle's engine, but for the gate.

    Args:
        vision_target: what encodes images, the target itself or another one; the looser limits of both then hold.
    """
    names = (target,) if vision_target is None else (target, vision_target)
    numerics = {name: registry.get_target(name).numerics(config, spec) for name in names}
    rounding = [
        name
        for name in numerics
        if artifact is not None and numerics[name].rounds_inputs and (name == target or _has_4_bit_images(artifact))
    ]
    return CheckOptions(
        config.precision,
        max((each.compute for each in numerics.values()), key=get_args(Compute).index),
        artifact is not None and (artifact.quantizes_inputs or bool(rounding)),
        own_weights=next((each.own_weights for each in numerics.values() if each.own_weights is not None), None),
        rounds_inputs=bool(rounding),
        rounding=tuple(rounding) if vision_target is not None else (),
        rounds_head=artifact is not None and numerics[target].rounds_head and LM_HEAD_LINEAR not in artifact.schemes,
        calibration=calibration_facts(artifact),
        max_new_tokens=max_new_tokens,
    )


def _has_4_bit_images(artifact: Artifact) -> bool:
    """Whether weights of tower or projector are of 4 bits, whose inputs an engine may round."""
    images = (scheme for name, scheme in artifact.schemes.items() if not name.startswith("language_model."))
    return any(scheme.weights.type in ("int4", "uint4") for scheme in images)


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
        samples=len(artifact.stats.samples) if reads_samples(artifact.recipe, artifact.spec) else 0,
        warnings=artifact.stats.warnings,
        sensitivity=read_table(path) if path.is_file() else None,
    )
