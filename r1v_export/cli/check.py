"""`r1v-export check`: parity of a bundle's engine with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from r1v_export.cli.output import common_options, device_option, model_option, print_json, table

if TYPE_CHECKING:
    from r1v_export.config import Device
    from r1v_export.parity.schema import ParityReport


@click.command(short_help="Compare a bundle's engine with PyTorch.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", help="Engine. [default: the bundle's first]")
@model_option
@click.option(
    "--questions",
    "count",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Questions that both sides answer.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Ask about this picture instead; repeat for several.",
)
@click.option("--question", default="What do you see?", show_default=True, help="What to ask about each --image.")
@click.option("--blocks", is_flag=True, help="Compare each ViT block.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=96, show_default=True, help="Longest answer.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder of the report. [default: BUNDLE/report/local]")
@device_option
@common_options
def command(
    bundle: Path,
    target: str | None,
    model: str | None,
    count: int,
    images: tuple[Path, ...],
    question: str,
    blocks: bool,
    max_new_tokens: int,
    report: Path | None,
    device: Device,
    format_: str,
) -> None:
    """Compare BUNDLE's engine with PyTorch at every boundary.

    Writes parity.json and parity.html with latencies; exits with 3 when a boundary is out of tolerance.
    """
    from r1v_export.manifest import LOCAL_REPORTS
    from r1v_export.parity.report import write_report
    from r1v_export.parity.samples import from_files
    from r1v_export.pipeline.bundle import REPORT_FOLDERS, Bundle
    from r1v_export.pipeline.calibration import open_artefact
    from r1v_export.pipeline.parity_gate import candidate_side, compare, gates, questions, rounding
    from r1v_export.pipeline.progress import Progress
    from r1v_export.pipeline.source import open_source

    opened = Bundle.open(bundle)
    target = opened.target(target)
    samples = list(from_files(images, [question])) if images else None
    progress = Progress(2, quiet=format_ == "json")
    checkpoint = open_source(opened, model, progress)
    candidate = candidate_side(bundle, target, device)
    artefact = open_artefact(bundle, checkpoint)
    limits = rounding(opened.config, target, opened.spec, artefact)
    results = []
    for gate, reference in gates(checkpoint, artefact, device):
        with progress.stage(gate, len(samples) if samples else count) as task:
            result = compare(
                reference,
                candidate,
                samples or questions(checkpoint, count),
                task.advance,
                gate=gate,
                blocks=blocks,
                max_new_tokens=max_new_tokens,
                measure_latency=True,
                **limits,
            )
        written = write_report(result, (report or bundle / LOCAL_REPORTS) / REPORT_FOLDERS[gate])
        if format_ == "text":
            _print(result)
            click.echo(f"report: {written[-1]}")
        results.append(result)
    if format_ == "json":
        reports = {result.gate: result.model_dump(mode="json") for result in results}
        print_json(reports if len(reports) > 1 else results[0].model_dump(mode="json"))
    for result in results:
        result.raise_if_failed()


def _print(report: ParityReport) -> None:
    """One line per boundary: its checked metrics, and their limits."""
    rows = []
    for boundary in report.boundaries:
        for check in boundary.checks or (None,):
            if check is None:
                rows.append((boundary.name, "", "", "", "not gated"))
            else:
                limit = f"{check.relation} {check.limit:g}"
                rows.append(
                    (boundary.name, check.metric, f"{check.value:.3g}", limit, "ok" if check.passed else "FAIL")
                )
    click.echo(table(rows, ("boundary", "metric", "value", "limit", "")))
    same = sum(sample.divergence is None for sample in report.samples)
    click.echo(f"\n{same} of {len(report.samples)} answers are the same, token by token")
    right = [sample for sample in report.samples if sample.reference_right is not None]
    if right:
        counts = sum(bool(s.candidate_right) for s in right), sum(bool(s.reference_right) for s in right)
        click.echo(f"right answers: {report.candidate} {counts[0]}, {report.reference} {counts[1]}, of {len(right)}")
