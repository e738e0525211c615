"""`check`: a finished bundle's engine compared with PyTorch on this machine, alone or together with other bundles."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from r1v_export.bundle import ENGINES, GRAPHS, Bundle
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.locate_checkpoint import open_source
from r1v_export.config import BuildConfig, Device, GateMode, ParityConfig
from r1v_export.count import Count
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.gpus import require_device
from r1v_export.model_spec import ModelSpec
from r1v_export.parity.comparison import check
from r1v_export.parity.endpoints import Endpoint
from r1v_export.parity.options import PAIRS
from r1v_export.parity.samples import ParitySample
from r1v_export.parity.schema import BundleFacts, ParityReport
from r1v_export.parity.tolerances import Gate
from r1v_export.pipeline.calibration import CALIBRATION, open_artifact
from r1v_export.pipeline.decoder_gate import compare_decoder, encoder_of
from r1v_export.pipeline.estimate import GateWork, free_bytes, gate_s
from r1v_export.pipeline.image_gate import compare_images
from r1v_export.pipeline.parity_gate import (
    GateRun,
    GeneratedQuestions,
    candidate_endpoint,
    check_options,
    choose_gate,
    gate_memory_of,
    gate_names,
    reference_endpoint,
    require_calibrated_scales,
)
from r1v_export.pipeline.rates import measured_flops
from r1v_export.pipeline.report_provenance import of_check
from r1v_export.progress import Progress, ProgressCallback, duration, size
from r1v_export.quantization.artifact.documents import read_recipe
from r1v_export.quantization.recipe import Recipe, Scheme, resolve
from r1v_export.targets import registry
from r1v_export.targets.decoders import DecoderPart, choose_decoder, decoder_part, lending_target
from r1v_export.targets.images import AUTO, ImageEncoder, choose, encoders_here

_LONG_S = 60.0
"""A check that takes longer says so before it begins."""


@dataclass(frozen=True)
class Questions:
    """What both sides are asked: so many of the model's own questions, or the samples where there are any.

    What is None is 32 questions and 96 tokens, or what `ParityConfig` has for a streamed gate.
    """

    count: int | None
    samples: tuple[ParitySample, ...]
    max_new_tokens: int | None
    gate: GateMode | None = None

    @property
    def parity(self) -> ParityConfig:
        """The same as settings of a gate."""
        count, defaults = len(self.samples) or self.count, ParityConfig()
        return ParityConfig(
            questions=count or 32,
            max_new_tokens=self.max_new_tokens or 96,
            gate=self.gate or "auto",
            streamed_questions=count or defaults.streamed_questions,
            streamed_reply_tokens=self.max_new_tokens or defaults.streamed_reply_tokens,
        )

    def longest(self, streamed: bool) -> int:
        """Tokens of an answer, or of the reply that a streamed gate is given."""
        return self.parity.streamed_reply_tokens if streamed else self.parity.max_new_tokens

    def of(self, checkpoint: Checkpoint, streamed: bool = False) -> Iterable[ParitySample]:
        """Return the given samples, or generate questions for the checkpoint."""
        count = self.parity.streamed_questions if streamed else self.parity.questions
        return self.samples or GeneratedQuestions(checkpoint, count)


def check_bundle(
    folder: Path,
    target: str | None,
    model: str | None,
    asked: Questions,
    against: Sequence[Path],
    device: Device,
    progress: Progress,
    *,
    blocks: bool,
    command: str,
    vision_target: str = AUTO,
    decoder_target: str = AUTO,
) -> list[ParityReport]:
    """One report for each gate; if there are other bundles to compare with, the last report includes them.

    Args:
        target: an engine of the bundle; its first if omitted.
        model: where the checkpoint is, when the bundle was built from a folder.
        against: other bundles of the same checkpoint.
        blocks: compare each ViT block.
        command: that asked for it, for the reports.
        vision_target: what encodes images, as `images.choose` has it. By default the engine's own gates come first, and
            then, where this machine can, the engine with its images encoded by what is faster; else that pair alone.
        decoder_target: what decodes, as `decoders.choose_decoder` has it; likewise.

    Raises:
        BundleError, UsageError: a folder is not a whole bundle, or not of the same checkpoint; a pair of engines would
            be compared block by block.
        CapabilityError: this machine cannot run an engine, or lacks the memory.
    """
    require_device(device)
    bundle = Bundle.open(folder)
    others, target = open_others(bundle, against), bundle.target(target)
    encoders = _encoders(bundle, target, vision_target, device)
    decoder = _decoder(bundle, target, vision_target, decoder_target, device)
    streamed = _streams([bundle, *others], asked, target, device)
    if streamed and (encoders or decoder):
        _refuse_asked(vision_target, decoder_target)
        encoders, decoder = [], None
    gates = _gates(bundle, target, encoders, decoder, alone=(vision_target != AUTO, decoder_target != AUTO))
    engines = (target, *(each.name for each in encoders if each.folder is None))
    progress.stages = 2 + (1 if streamed else len(gates)) + len(others)
    checkpoint = open_source(bundle, model, progress)
    provenance = of_check(bundle, engines, device, command, progress)
    # The others', too: a damaged one is found before anything is measured.
    artifact, *_ = [open_artifact(each.folder, checkpoint) for each in (bundle, *others)]
    require_calibrated_scales(bundle.graphs, artifact)
    options = check_options(bundle.config, target, bundle.spec, artifact, max_new_tokens=asked.longest(streamed))
    options = replace(options, blocks=blocks, measure_latency=not streamed)
    of_gates = [replace(options, gate=gate) for gate in gates if gate not in PAIRS]
    run = GateRun(folder, target, checkpoint, artifact, device)
    questions = asked.of(checkpoint, streamed)
    _announce(progress, bundle, asked, gates, others, streamed)
    if streamed:
        with progress.stage(" and ".join(gates)) as task, tempfile.TemporaryDirectory() as work:
            reports = run.streamed(questions, of_gates, Path(work, "activations"), task.report)
    else:
        reports = []
        for of_gate in of_gates:
            with progress.stage(of_gate.gate) as task:
                reports.append(run.whole(questions, of_gate, task.report))
        by_images = None
        if "images" in gates:
            with progress.stage("images") as task:
                by_images = compare_images(run, questions, options, bundle.config, encoders, task.report)
            reports.append(by_images)
        if decoder is not None:
            chosen = choose(bundle, target, vision_target, device).encoder
            encoder = encoder_of(by_images, target, encoders) if by_images else chosen
            with progress.stage("decoder") as task:
                arguments = run, questions, options, bundle.config, encoder, decoder, task.report
                of_decoder = compare_decoder(*arguments, optional=decoder_target == AUTO)
            reports += [of_decoder] if of_decoder else []
    reports = [report.model_copy(update={"provenance": provenance}) for report in reports]
    if others:
        last = max((n for n, gate in enumerate(gates) if gate not in PAIRS), default=0)
        rows = [facts(bundle, target, reports[last]), *_measured(others, checkpoint, asked, device, progress, streamed)]
        reports[last] = reports[last].model_copy(update={"bundles": tuple(rows)})
    return reports


def _gates(
    bundle: Bundle,
    target: str,
    encoders: Sequence[ImageEncoder],
    decoder: DecoderPart | None,
    alone: tuple[bool, bool],
) -> tuple[Gate, ...]:
    """The gates to run, in their order.

    Args:
        alone: whether what encodes images, and what decodes, was asked for: no other gate is run then.
    """
    if decoder is not None and alone[1]:
        return ("decoder",)
    if encoders and alone[0]:
        return ("images",)
    own_weights = registry.get_target(target).numerics(bundle.config, bundle.spec).own_weights
    gates = gate_names(_recipe(bundle), own_weights)
    return (*gates, *(("images",) if encoders else ()), *(("decoder",) if decoder else ()))


def _decoder(
    bundle: Bundle, target: str, vision_target: str, decoder_target: str, device: Device
) -> DecoderPart | None:
    """What decodes instead of the target, if it is to be compared."""
    if decoder_target != AUTO:
        return choose_decoder(bundle, target, decoder_target, device).part
    part = decoder_part(bundle.folder, target) if device == "cpu" and vision_target == AUTO else None
    return None if part is None or lending_target(part.name).why_not_decoder() else part


def _encoders(bundle: Bundle, target: str, vision_target: str, device: Device) -> list[ImageEncoder]:
    """What encodes images instead of the target, if it is to be compared, the next where one is out of tolerance.
    Whether it ever was does not matter."""
    if vision_target == AUTO:
        return encoders_here(bundle.folder, target) if device == "cpu" else []
    encoder = choose(bundle, target, vision_target, device).encoder
    if encoder is None or encoder.folder is None:
        return [] if encoder is None else [encoder]
    return [part for part in encoders_here(bundle.folder, target) if vision_target in part.option_values] or [encoder]


def _refuse_asked(vision_target: str, decoder_target: str) -> None:
    """
    Raises:
        UsageError: a streamed gate is asked for a pair of engines.
    """
    asked = {"--vision-target": vision_target, "--decoder-target": decoder_target}
    named = [option for option, value in asked.items() if value != AUTO]
    if named:
        raise UsageError(
            "A streamed gate compares one engine.",
            where=" ".join(named),
            fix="check both targets alone, or pass --gate whole on a machine with the memory",
        )


def _recipe(bundle: Bundle) -> Recipe | None:
    """What its calibration was made by; None where nothing is quantized."""
    folder = bundle.folder / CALIBRATION
    return read_recipe(folder) if folder.is_dir() else None


def _streams(bundles: Sequence[Bundle], asked: Questions, target: str, device: Device) -> bool:
    """Whether the engines, `target` of the first bundle and the first of the others, are compared block by block: all
    are where one has to be, so that their numbers can be compared.

    Raises:
        CapabilityError: as `choose_gate`; or the disk does not hold the activations of so many questions.
    """

    def planned(bundle: Bundle, gate: GateMode) -> tuple[BuildConfig, str, ModelSpec, Mapping[str, Scheme]]:
        parity = asked.parity.model_copy(update={"gate": gate})
        config = bundle.config.model_copy(update={"parity": parity, "device": device})
        recipe, name = _recipe(bundle), target if bundle is bundles[0] else bundle.target(None)
        return config, name, bundle.spec, resolve(recipe, bundle.spec) if recipe else {}

    streamed = "streamed" in [choose_gate(*planned(bundle, asked.parity.gate)) for bundle in bundles]
    if streamed:
        for bundle in bundles:
            choose_gate(*planned(bundle, "streamed"))
        _require_disk(max(gate_memory_of(*planned(bundle, "streamed")).spilled for bundle in bundles))
    return streamed


def _require_disk(spilled_bytes: int) -> None:
    """
    Raises:
        CapabilityError: the folder for temporary files has not so much room.
    """
    folder = Path(tempfile.gettempdir())
    if spilled_bytes and (free := free_bytes(folder)) < spilled_bytes:
        raise CapabilityError(
            "The disk is too small for what so many questions bring from block to block.",
            where=folder,
            expected=f"{size(spilled_bytes)} free",
            found=f"{size(free)} free",
            fix="ask fewer questions, or set TMPDIR to a folder on a larger disk",
        )


def _announce(
    progress: Progress,
    bundle: Bundle,
    asked: Questions,
    gates: Sequence[str],
    others: Sequence[Bundle],
    streamed: bool,
) -> None:
    """Give the progress what stages will take, and say before the first one if all together take long."""
    recipe, flops = _recipe(bundle), measured_flops("float32")
    schemes = resolve(recipe, bundle.spec) if recipe else {}

    def seconds(comparisons: int) -> float:
        kind: Literal["whole", "streamed"] = "streamed" if streamed else "whole"
        return gate_s(kind, bundle.spec, asked.parity, flops, GateWork.of(schemes, comparisons))

    expected = {" and ".join(gates): seconds(len(gates))} if streamed else {gate: seconds(1) for gate in gates}
    expected |= {other.folder.name: seconds(1) for other in others}
    progress.expected_s = expected
    if (all_s := sum(expected.values())) >= _LONG_S:
        count = asked.parity.streamed_questions if streamed else asked.parity.questions
        progress.note(f"{Count(count, 'question')}: about {duration(all_s)} on CPUs that do nothing else")


def _measured(
    bundles: Sequence[Bundle],
    checkpoint: Checkpoint,
    asked: Questions,
    device: Device,
    progress: Progress,
    streamed: bool,
) -> Iterator[BundleFacts]:
    original = None if streamed else reference_endpoint(checkpoint, device)
    for bundle in bundles:
        with progress.stage(bundle.folder.name) as task:
            yield measure(bundle, checkpoint, original, asked, device, task.report)


def open_others(own: Bundle, folders: Sequence[Path]) -> list[Bundle]:
    """The bundles to compare with `own`, checked before any of them is measured.

    Raises:
        BundleError: one is not a whole bundle.
        UsageError: one was built from another checkpoint, or is `own`.
    """
    others = [Bundle.open(folder) for folder in folders]
    for other in others:
        if other.folder.resolve() == own.folder.resolve():
            raise UsageError("A bundle cannot be compared with itself.", where=other.folder, fix="name other bundles")
        if other.config.image_policy != own.config.image_policy:
            raise UsageError(
                "The bundles read images by different policies.",
                where=other.folder,
                expected=own.config.image_policy,
                found=other.config.image_policy,
                fix="name bundles of the same --image-policy",
            )
        if other.manifest.source.files != own.manifest.source.files:
            raise UsageError(
                "The bundles were built from different checkpoints.",
                where=other.folder,
                expected=own.manifest.source.name,
                found=other.manifest.source.name,
                fix="name bundles of the same checkpoint",
            )
    return others


def measure(
    bundle: Bundle,
    checkpoint: Checkpoint,
    reference: Endpoint | None,
    asked: Questions,
    device: Device,
    on_progress: ProgressCallback,
) -> BundleFacts:
    """Compare a bundle's first engine with the float32 model.

    Args:
        reference: the float32 model; None to compare block by block.

    Raises:
        CapabilityError: this machine cannot run the engine.
    """
    target, artifact, streamed = bundle.target(None), open_artifact(bundle.folder, checkpoint), reference is None
    longest = asked.longest(streamed)
    options = check_options(bundle.config, target, bundle.spec, artifact, max_new_tokens=longest)
    options = replace(options, gate=gate_names(_recipe(bundle), options.own_weights)[-1])
    questions = asked.of(checkpoint, streamed)
    if reference is None:
        run = GateRun(bundle.folder, target, checkpoint, artifact, device)
        with tempfile.TemporaryDirectory() as work:
            (report,) = run.streamed(questions, [options], Path(work, "activations"), on_progress)
    else:
        report = check(reference, candidate_endpoint(bundle.folder, target, device), questions, options, on_progress)
    return facts(bundle, target, report)


def facts(bundle: Bundle, target: str, report: ParityReport) -> BundleFacts:
    """A bundle in numbers, from its report against the float32 model."""
    metrics = report.boundary("decode").metrics
    scored = [sample for sample in report.samples if sample.candidate_correct is not None]
    return BundleFacts(
        name=bundle.folder.resolve().name,
        precision=report.precision,
        target=target,
        size_bytes=weight_bytes(bundle, target),
        mean_kl=metrics["mean_kl"],
        top1_agreement=metrics["top1_agreement"],
        correct=sum(bool(sample.candidate_correct) for sample in scored),
        scored=len(scored),
    )


def weight_bytes(bundle: Bundle, target: str) -> int:
    """Size of the standard graphs, which hold every weight once; of the engine where it is built from no graphs."""
    files = bundle.manifest.files
    sizes = {
        place: sum(entry.size for path, entry in files.items() if path.startswith(f"{place}/"))
        for place in (GRAPHS, f"{ENGINES}/{target}")
    }
    return sizes[GRAPHS] or sizes[f"{ENGINES}/{target}"]
