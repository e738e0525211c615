"""`check`: compare a candidate engine with a reference engine."""

from __future__ import annotations

import importlib.metadata
import io
import logging
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from operator import length_hint

from PIL import Image

from r1v_export.contract import BlockwiseEngine, Engine, VisionBlocks
from r1v_export.count import Count
from r1v_export.errors import CapabilityError, InputError, ParityError
from r1v_export.log_event import log_event
from r1v_export.parity import one_sequence
from r1v_export.parity.boundaries import Answers, BatchShares, BoundaryComparator
from r1v_export.parity.boundary_statistics import BoundaryStatistics
from r1v_export.parity.diagnosis import diagnose, kind_of, problem
from r1v_export.parity.endpoints import Endpoint
from r1v_export.parity.latency import TimedEngine, latencies
from r1v_export.parity.metrics import LogitStatistics, Statistics, TensorStatistics, first_divergence
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.ranges import range_facts, recorder, saturations
from r1v_export.parity.rounded_inputs import RoundedInputs
from r1v_export.parity.samples import ParitySample
from r1v_export.parity.schema import (
    BoundaryResult,
    Check,
    Divergence,
    ParityReport,
    ReasoningFormat,
    SampleResult,
    StepResult,
    WorstElement,
)
from r1v_export.parity.tolerances import Boundary, Gate, Tolerance, ToleranceProfile, tolerances
from r1v_export.progress import ProgressCallback, ignore_progress, subrange
from r1v_export.runner.reasoning import split_reasoning
from r1v_export.serialized.pipeline import PipelineDocument
from r1v_export.targets import registry

_LOG = logging.getLogger(__name__)

COMPARED: Mapping[Boundary, str] = {
    "pixels": "normalized tiles, made with each side's tiling settings",
    "prompt": "token ids of the prompt, made with each side's tokenizer and template",
    "vision_block": "hidden states after a ViT block",
    "vision": "vision features of the reference's pixels",
    "projector": "image embeddings of the reference's vision features",
    "embeds": "input embeddings: every token of the vocabulary, and the prompts with the reference's image embeddings",
    "decoder_layer": "hidden states after a decoder layer, of prompt and reply, from the reference's input embeddings",
    "prefill": "logits after the prompt, from the reference's input embeddings",
    "decode": "logits of every later token, fed with the reference's own answer",
    "end_to_end": "logits after the prompt, each side on its own outputs throughout",
    "tokens": "greedy answers, each side on its own outputs throughout",
}
"""Boundary -> what is compared there, in data-flow order."""

_WITH_IMAGES = 12
"""Samples whose images the page shows: the first so many, and the first so many that diverge."""

_THUMBNAIL_PIXELS = 144
_PACKAGES = ("r1v-export", "torch", "numpy", "pillow", "tokenizers")


def check(
    reference: Endpoint,
    candidate: Endpoint,
    samples: Iterable[ParitySample],
    options: CheckOptions,
    on_progress: ProgressCallback = ignore_progress,
    shares: BatchShares | None = None,
) -> ParityReport:
    """Compare two engines boundary by boundary and end to end.

    Args:
        reference: what is taken as correct: PyTorch, with the checkpoint's own files.
        candidate: the engine under test, with the files of its bundle.
        samples: compared in this order; drawn from as needed, `options.batch_size` at a time.
        options: what is compared, and by which limits.
        on_progress: called with the share that is done, after each prompt and each step of decoding.
        shares: of a batch's time, by which that is counted; those of r1v-nano if omitted.

    Raises:
        UsageError: the table has no limits for such an engine.
        ParityError: the engines are of different models, so that nothing can be compared.
        CapabilityError: `options.blocks` with an engine that does not show its ViT blocks.
        InputError: no samples, or one that cannot be used.
    """
    profile = options.profile
    require_one_model(reference.engine, candidate.engine)
    can_show_blocks = _can_show_blocks(reference, candidate, options)
    _log_options(reference, candidate, options)
    recording = recorder(reference.engine, options)
    likely, of_one = length_hint(samples), BoundaryStatistics()
    if options.one_sequence:
        of_one, samples, on_progress = one_sequence.compare(reference, candidate, samples, options, on_progress)
    timed: tuple[TimedEngine, ...] = ()
    if options.measure_latency:
        timed = tuple(TimedEngine(endpoint.engine) for endpoint in (reference, candidate))
        reference, candidate = (replace(s, engine=t) for s, t in zip((reference, candidate), timed, strict=True))

    comparator = BoundaryComparator(
        reference, candidate, options.blocks, options.max_new_tokens, shares or BatchShares()
    )
    with recording as magnitudes:
        comparator.compare_vocabulary()
        results, first_batch = _compare_samples(comparator, samples, likely, options.batch_size, on_progress)
    found = comparator.found
    boundaries, first_bad = judge(found.by_name, profile)
    if first_bad == "vision" and can_show_blocks and not options.blocks:
        _compare_blocks(comparator, first_batch)
        boundaries, first_bad = judge(found.by_name, profile)
    boundaries_of_one, bad_of_one = _judge_one_sequence(of_one, profile)
    if first_bad is None and bad_of_one:
        found, boundaries, first_bad = of_one, boundaries_of_one, bad_of_one
    log_boundaries(options.gate, boundaries, len(results), first_bad)
    diagnosis = diagnose(first_bad, found.by_name, reference.tokenizer, options)
    return ParityReport(
        reference=reference.engine.name,
        candidate=candidate.engine.name,
        precision=options.precision,
        gate=options.gate,
        profile=profile,
        max_new_tokens=options.max_new_tokens,
        first_bad=first_bad,
        causes=(*((one_sequence.CAUSE,) if found is of_one else ()), *diagnosis.causes),
        next_steps=diagnosis.next_steps,
        boundaries=boundaries,
        decode_steps=step_results(found.steps),
        samples=tuple(results),
        reasoning=_reasoning_format(reference.pipeline),
        environment=environment(),
        ranges=range_facts(magnitudes, options.compute),
        saturations=saturations(magnitudes),
        calibration=options.calibration,
        rounded_inputs=rounded_inputs(boundaries, options),
        latency=latencies(*timed) if timed else (),
    )


def _compare_blocks(comparator: BoundaryComparator, samples: Sequence[ParitySample]) -> None:
    """Compare every ViT block, to name the bad one. An engine may find only now that its blocks were fused away; then
    the tower is named as a whole."""
    with suppress(CapabilityError):
        for sample in samples:
            comparator.compare_blocks(comparator.reference.inputs(sample).pixel_values, sample.name)


def _can_show_blocks(reference: Endpoint, candidate: Endpoint, options: CheckOptions) -> bool:
    """Whether both engines show ViT blocks.

    Raises:
        CapabilityError: they are asked for, and cannot be seen.
    """
    can_show = all(isinstance(endpoint.engine, VisionBlocks) for endpoint in (reference, candidate))
    if options.blocks and not can_show:
        raise CapabilityError(
            "ViT blocks cannot be compared: an engine does not show them",
            expected="vision_blocks in both engines",
            found=f"{reference.engine.name}, {candidate.engine.name}",
            fix="compare without blocks",
        )
    return can_show


def rounded_inputs(boundaries: Sequence[BoundaryResult], options: CheckOptions) -> RoundedInputs | None:
    """What a report says of inputs that the candidate rounds by itself; None if it does not."""
    if not (options.rounds_inputs or options.rounds_images):
        return None
    metrics = next((each.metrics for each in boundaries if each.name == "decode"), {})
    if options.gate == "quantization":
        metrics = {}
    return RoundedInputs(
        inputs=options.rounds_inputs,
        head=options.rounds_head,
        images=options.rounds_images,
        mean_kl=metrics.get("mean_kl"),
        top1_agreement=metrics.get("top1_agreement"),
        engines=options.rounding,
    )


def _log_options(reference: Endpoint, candidate: Endpoint, options: CheckOptions) -> None:
    message = "gate %(gate)s: %(candidate)s against %(reference)s, limits of %(precision)s computed in %(compute)s"
    facts = {"gate": options.gate, "precision": options.precision, "compute": options.compute}
    names = {"candidate": candidate.engine.name, "reference": reference.engine.name}
    log_event(_LOG, logging.INFO, message, **facts, **names)


def log_boundaries(gate: Gate, boundaries: Sequence[BoundaryResult], samples: int, first_bad: str | None) -> None:
    """Log each check of a gate, and its result."""
    for boundary in boundaries:
        for row in boundary.checks:
            message = f"%(boundary)s: %(metric)s %(value).3g, %(relation)s %(limit)g{'' if row.passed else ': failed'}"
            fields = {name: getattr(row, name) for name in ("metric", "value", "relation", "limit", "passed")}
            log_event(_LOG, logging.DEBUG, message, gate=gate, boundary=boundary.name, **fields)
    log_event(
        _LOG,
        logging.INFO,
        "gate %(gate)s: %(samples)s, first bad boundary: %(first_bad)s",
        gate=gate,
        samples=Count(samples, "sample"),
        first_bad=first_bad or "none",
    )


def environment() -> dict[str, str]:
    """Versions that the numbers may depend on."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in (*_PACKAGES, *registry.all_tools()):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def require_one_model(reference: Engine | BlockwiseEngine, candidate: Engine | BlockwiseEngine) -> None:
    """Check that two engines are of one model.

    Raises:
        ParityError: the engines are of different models.
    """
    expected, found = reference.sizes, candidate.sizes
    if expected != found:
        raise ParityError(
            "The two engines are of different models; there is nothing to compare.",
            where=candidate.name,
            expected=expected,
            found=found,
            fix="build the engine from the checkpoint that it is checked against",
        )


def _compare_samples(
    comparator: BoundaryComparator,
    samples: Iterable[ParitySample],
    likely: int,
    batch_size: int,
    on_progress: ProgressCallback,
) -> tuple[list[SampleResult], list[ParitySample]]:
    """Compare every sample at every boundary. Returns the results and the first batch.

    Args:
        likely: how many there are, for progress.
    """
    remaining = iter(samples)
    results: list[SampleResult] = []
    first_batch: list[ParitySample] = []
    with_images = 0
    while batch := list(islice(remaining, batch_size)):
        first_batch = first_batch or batch
        begun, count = len(results), max(likely, len(results) + len(batch))
        of_batch = subrange(on_progress, begun / count, (begun + len(batch)) / count)
        for answers in comparator.compare_batch(batch, of_batch):
            diverged = answers.reference != answers.candidate
            shown = len(results) < _WITH_IMAGES or (diverged and with_images < _WITH_IMAGES)
            with_images += diverged and shown
            results.append(_sample_result(answers, comparator.reference, with_images=shown))
        of_batch(1.0, 1.0)
    if not results:
        raise InputError("There is nothing to compare.", expected="at least one sample", found="none")
    return results, first_batch


def _judge_one_sequence(
    found: BoundaryStatistics, profile: ToleranceProfile
) -> tuple[tuple[BoundaryResult, ...], str | None]:
    """`judge` for one sample, but for the share of tokens that agree: of so few, a single one may be too much."""
    boundaries, _ = judge(found.by_name, profile)
    failed = ((each.name, row.metric) for each in boundaries for row in each.checks if not row.passed)
    return boundaries, next((name for name, metric in failed if metric != "top1_agreement"), None)


def judge(
    statistics: Mapping[str, Statistics], profile: ToleranceProfile, compared: Mapping[Boundary, str] = COMPARED
) -> tuple[tuple[BoundaryResult, ...], str | None]:
    """Evaluate every boundary against the tolerance table, in data-flow order; also returns the first bad one.
    `compared` says what is compared at each."""
    names = sorted(statistics, key=_position)
    boundaries = tuple(_judge_one(name, statistics[name], profile, compared[kind_of(name)]) for name in names)
    return boundaries, next((boundary.name for boundary in boundaries if not boundary.passed), None)


def _position(boundary: str) -> tuple[int, int]:
    _, _, block = boundary.partition(".")
    return list(COMPARED).index(kind_of(boundary)), int(block or 0)


def _judge_one(name: str, statistics: Statistics, profile: ToleranceProfile, compared: str) -> BoundaryResult:
    metrics = statistics.metrics()
    tensor = statistics.tensor if isinstance(statistics, LogitStatistics) else statistics
    worst = tensor.worst if isinstance(tensor, TensorStatistics) else None
    return BoundaryResult(
        name=name,
        compared=compared,
        metrics=metrics,
        checks=tuple(evaluate(row, statistics) for row in tolerances(kind_of(name), profile)),
        worst=WorstElement(**asdict(worst)) if worst else None,
        problem=problem(statistics),
    )


def evaluate(row: Tolerance, statistics: Statistics) -> Check:
    """Compare a boundary's measured value with a tolerance; where that allows near ties, they count as agreement."""
    value, near_ties = statistics.metrics()[row.metric], 0
    if row.near_tie is not None and isinstance(statistics, LogitStatistics):
        value, near_ties = statistics.top1_agreement(row.near_tie), statistics.near_ties(row.near_tie)
    return Check(
        metric=row.metric,
        value=value,
        relation=row.relation,
        limit=row.bound,
        passed=row.holds(value),
        near_ties=near_ties,
        near_tie=row.near_tie,
        reason=row.reason,
    )


def step_results(steps: Mapping[int, LogitStatistics]) -> tuple[StepResult, ...]:
    """The decode steps in order."""
    return tuple(_step_result(step, steps[step]) for step in sorted(steps))


def _step_result(step: int, statistics: LogitStatistics) -> StepResult:
    metrics = statistics.metrics()
    return StepResult(
        step=step, samples=statistics.rows, max_abs_error=metrics["max_abs_error"], mean_kl=metrics["mean_kl"]
    )


def _sample_result(answers: Answers, endpoint: Endpoint, with_images: bool) -> SampleResult:
    sample, tokenizer = answers.sample, endpoint.tokenizer
    same = answers.reference == answers.candidate
    text, own_text = (tokenizer.decode(tokens) for tokens in (answers.reference, answers.candidate))
    return SampleResult(
        name=sample.name,
        question=sample.question,
        expected=sample.answer,
        reference=text,
        candidate=None if same else own_text,
        tokens=len(answers.reference),
        reference_correct=_is_correct(text, sample, endpoint),
        candidate_correct=_is_correct(own_text, sample, endpoint),
        divergence=_divergence(answers, endpoint),
        thumbnails_png=tuple(_thumbnails(sample)) if with_images else (),
    )


def _reasoning_format(pipeline: PipelineDocument) -> ReasoningFormat:
    return ReasoningFormat(tags=pipeline.reasoning.pair, is_opened=bool(pipeline.prompt.thinking))


def _is_correct(text: str, sample: ParitySample, endpoint: Endpoint) -> bool | None:
    """Whether the final answer is the expected one, but for case and a full stop; None where that is not known."""
    if sample.answer is None:
        return None
    pipeline = endpoint.pipeline
    answer = split_reasoning(text, bool(pipeline.prompt.thinking), pipeline.reasoning.pair).answer
    return answer.strip().rstrip(".").casefold() == sample.answer.strip().rstrip(".").casefold()


def _divergence(answers: Answers, endpoint: Endpoint) -> Divergence | None:
    expected, found = answers.reference, answers.candidate
    position = first_divergence(expected, found)
    if position is None:
        return None
    here, rest = slice(position, position + 1), slice(position + 1, None)
    return Divergence(
        position=position,
        agreed=endpoint.tokenizer.decode(expected[:position]),
        reference_token=_readable(expected[here], endpoint),
        candidate_token=_readable(found[here], endpoint),
        reference_rest=endpoint.tokenizer.decode(expected[rest]),
        candidate_rest=endpoint.tokenizer.decode(found[rest]),
        margin=answers.margins[position] if position < len(expected) else 0.0,
    )


def _readable(ids: list[int], endpoint: Endpoint) -> str:
    """Text of one token or none; its id where it has no text or only a part of a character."""
    text = endpoint.tokenizer.decode(ids)
    return " ".join(f"⟨token {token}⟩" for token in ids) if not text or "\N{REPLACEMENT CHARACTER}" in text else text


def _thumbnails(sample: ParitySample) -> Iterator[bytes]:
    for image in sample.images:
        small = image.convert("RGB")
        small.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "PNG", optimize=True)
        yield file.getvalue()
