"""`r1v-export check`: parity of a bundle's engine with PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1v_export.cli.images import SOURCE, allow_url_option, image_opener, require_readable_stdin
from r1v_export.cli.other_targets import other_targets_options
from r1v_export.cli.output import (
    TargetOption,
    WholeNumber,
    common_options,
    device_option,
    gate_option,
    model_option,
    print_json,
    refuse_given,
    shown_progress,
    table,
    wrapped,
)
from r1v_export.cli.paths import OptionPath
from r1v_export.cli.threads import threads_option
from r1v_export.cli.typed_command import typed_command
from r1v_export.count import Count
from r1v_export.errors import UsageError

if TYPE_CHECKING:
    from r1v_export.config import Device, GateMode
    from r1v_export.parity.schema import ParityReport

ELSEWHERE = "pass --report DIR, a folder that can be written to"


@click.command(short_help="Compare a bundle's engine with PyTorch.")
@click.argument("bundle", type=OptionPath())
@click.option("--target", cls=TargetOption, help="Engine. [default: the bundle's first]")
@other_targets_options
@model_option
@click.option(
    "--questions",
    "count",
    type=WholeNumber(min=1),
    help="Questions that both sides answer. [default: 32; 2 of a streamed gate]",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar=SOURCE,
    help="Ask about this image instead; repeat for several.",
)
@allow_url_option
@click.option("--question", default="What do you see?", show_default=True, help="What to ask about each --image.")
@gate_option
@click.option("--blocks", is_flag=True, help="Compare each ViT block.")
@click.option(
    "--against",
    multiple=True,
    type=OptionPath(),
    help="Also measure this bundle, and plot accuracy against size; repeat for several.",
)
@click.option("--max-new-tokens", type=WholeNumber(min=1), help="Longest answer. [default: 96; 16 of a streamed gate]")
@click.option("--report", type=OptionPath(), help="Folder of the report. [default: BUNDLE/report/local]")
@device_option
@threads_option
@common_options
def command(
    bundle: Path,
    target: str | None,
    vision_target: str,
    decoder_target: str,
    model: str | None,
    count: int | None,
    images: tuple[str, ...],
    allow_url: bool,
    question: str,
    gate: GateMode | None,
    blocks: bool,
    against: tuple[Path, ...],
    max_new_tokens: int | None,
    report: Path | None,
    device: Device,
    format_: str,
) -> None:
    """Compare BUNDLE's engine with PyTorch at every boundary.

    Prints a table, then writes parity.json and parity.html with latencies; exits with 3 when a boundary is out of
    tolerance. With --against, other bundles of the same checkpoint answer the same questions, and the report shows
    which loses what.
    """
    from r1v_export.bundle import Bundle
    from r1v_export.files import require_writable, unwritable
    from r1v_export.manifest import LOCAL_REPORTS
    from r1v_export.parity.report import write_reports
    from r1v_export.parity.samples import from_files
    from r1v_export.pipeline.check import Questions, check_bundle

    folder = report or bundle / LOCAL_REPORTS
    _require_one_source(images, count)
    load = image_opener(Bundle.open(bundle).pipeline.image_policy, allow_url)
    asked = Questions(count, tuple(from_files(images, [question], load)), max_new_tokens, gate)
    require_writable(folder, ELSEWHERE)
    progress = shown_progress(format_)
    results = check_bundle(
        bundle,
        target,
        model,
        asked,
        against,
        device,
        progress,
        blocks=blocks,
        command=typed_command(),
        vision_target=vision_target,
        decoder_target=decoder_target,
    )
    if format_ == "json":
        print_json(_as_json(results))
    else:
        for number, result in enumerate(results):
            if number:
                click.echo()
            _print(result)
    try:
        pages = write_reports(results, folder)
    except OSError as error:
        raise unwritable(folder, error, ELSEWHERE) from error
    if format_ == "text":
        for page in pages:
            click.echo(f"report: {page}")
    for result in results:
        result.raise_if_failed()


def _require_one_source(images: Sequence[str], count: int | None) -> None:
    """
    Raises:
        UsageError: options about what is asked exclude each other, or an image would have to be typed.
    """
    require_readable_stdin(images)
    if not images:
        refuse_given(click.get_current_context(), ("question",), "without --image", "add --image FILE, or omit it")
    elif count is not None:
        raise UsageError(
            "Own images are asked about instead of the questions that are counted.",
            where="--image --questions",
            expected="one of the two options",
            found=f"{Count(len(images), 'image')} and --questions {count}",
            fix="omit --questions, or --image",
        )


def _as_json(results: Sequence[ParityReport]) -> dict[str, Any]:
    """The reports by their gates; the fields of the report itself where the engine has one gate, whether or not this
    machine also compares it together with another one."""
    reports: dict[str, Any] = {result.gate: result.model_dump(mode="json") for result in results}
    if len(reports.keys() - {"images", "decoder"}) <= 1:
        first: dict[str, Any] = reports.pop(results[0].gate)
        return first | reports
    return reports


def _print(report: ParityReport) -> None:
    """What was asked; one line per boundary: its checked metrics, and their limits."""
    from r1v_export.parity.metric_text import limit_text, metric_text, short

    verdict = "passed" if report.passed else "FAILED"
    click.echo(wrapped(f"{report.title} ({report.candidate}, {report.precision}): {verdict}"))
    rows = []
    for boundary in report.boundaries:
        for check in boundary.checks or (None,):
            if check is None:
                rows.append((boundary.name, "not gated", "", "", ""))
            else:
                value = metric_text(check.value, check.metric, check.limit)
                limit = f"{check.relation} {limit_text(check.limit, check.metric)}"
                rows.append((boundary.name, check.metric, value, limit, "ok" if check.passed else "FAIL"))
    click.echo(table(rows, ("boundary", "metric", "value", "limit", "")))
    for name, check in ((boundary.name, check) for boundary in report.boundaries for check in boundary.checks):
        if check.near_ties:
            ties = Count(check.near_ties, "near tie")
            within = f"within {check.near_tie:g} in the reference's logits"
            click.echo(wrapped(f"{name}: {ties} counted as agreement, {within}"))
    if report.texts and report.texts.not_gated is None:
        rated = "ok" if report.texts.passed else "FAIL"
        limit = f"at most {short(report.texts.unigram_nll)}"
        nats = f"{short(report.texts.nll)} nats per token"
        click.echo(wrapped(f"replies to calibration questions: {nats}, {limit}: {rated}"))
    if report.provenance and report.provenance.read_back:
        click.echo(wrapped(f"what was computed: the files of {report.candidate}, {report.provenance.read_back}"))
    if report.rounded_inputs:
        click.echo(wrapped(report.rounded_inputs.sentence))
    for warning in report.warnings:
        click.echo(wrapped(f"warning: {warning}"))
    _print_answers(report)
    if report.bundles:
        click.echo(f"\n{_side_by_side(report)}")


def _print_answers(report: ParityReport) -> None:
    """How many answers are the same, and how many are correct."""
    if report.streamed:
        agreeing = sum(sample.top1_agreeing for sample in report.streamed)
        tokens = sum(1 + sample.reply_tokens for sample in report.streamed)
        same_tokens = f"both choose the same token at {agreeing} of {Count(tokens, 'position')}"
        click.echo("\n" + wrapped(f"streamed, block by block: {same_tokens}"))
    else:
        same = sum(sample.divergence is None for sample in report.samples)
        answers = Count(len(report.samples), "answer is", "answers are")
        click.echo("\n" + wrapped(f"{same} of {answers} the same, token by token"))
    scored = [sample for sample in report.samples if sample.reference_correct is not None]
    if scored:
        counts = sum(bool(s.candidate_correct) for s in scored), sum(bool(s.reference_correct) for s in scored)
        each = f"{report.candidate} {counts[0]}, {report.reference} {counts[1]}"
        # Half an answer is not correct.
        cut = sum(sample.tokens >= report.max_new_tokens for sample in scored)
        click.echo(wrapped(f"correct answers: {each}, of {len(scored)}" + (f", {cut} cut off" if cut else "")))


def _side_by_side(report: ParityReport) -> str:
    from r1v_export.parity.metric_text import share, short
    from r1v_export.progress import size

    rows = [
        (b.name, b.precision, size(b.size_bytes), short(b.mean_kl), share(b.top1_agreement))
        + ((f"{b.correct} of {b.scored}",) if b.scored else ("",))
        for b in report.bundles
    ]
    return table(rows, ("bundle", "precision", "weights", "mean KL", "top-1", "correct"))
