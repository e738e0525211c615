"""`r1v-export bench`: latency by stage, time to first token, tokens per second, peak memory, share of the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from r1v_export import build_extra
from r1v_export.cli.images import SOURCE, allow_url_option, image_opener
from r1v_export.cli.output import (
    common_options,
    device_option,
    engine_option,
    model_option,
    print_json,
    shown_progress,
    table,
    target_option,
    threads_option,
)

if TYPE_CHECKING:
    from r1v_export.config import Device
    from r1v_export.pipeline.roofline_report import NoRoofline, RooflineFacts
    from r1v_export.runner.bench import Measurement


@click.command(short_help="Measure a bundle's engine.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", metavar=SOURCE, help="Ask about this image. [default: a synthetic one]")
@allow_url_option
@click.option("--question", default="What do you see?", show_default=True, help="What to ask.")
@target_option
@engine_option
@model_option
@click.option("--tokens", type=click.IntRange(min=2), default=64, show_default=True, help="Tokens of each answer.")
@click.option(
    "--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Runs after the warm-up; medians count."
)
@click.option("--roofline", "gpu", metavar="GPU", help="Compare with H100, ... [default: the GPU that it runs on]")
@device_option
@threads_option
@common_options
def command(
    bundle: Path,
    image: str | None,
    allow_url: bool,
    question: str,
    target: str | None,
    engine: str | None,
    model: str | None,
    tokens: int,
    runs: int,
    gpu: str | None,
    device: Device,
    format_: str,
) -> None:
    """Measure BUNDLE's engine on this machine: medians over some runs of one question."""
    from r1v_export.bundle import Bundle
    from r1v_export.pipeline.roofline_report import attained
    from r1v_export.roofline.devices import device as gpu_named
    from r1v_export.runner.bench import measure
    from r1v_export.runner.open_runner import open_runner

    if gpu:
        build_extra.require()
    peaks = gpu_named(gpu) if gpu else None
    runner = open_runner(bundle, target, model, device, engine)
    loaded = image_opener(runner.image_policy, allow_url)(image) if image else None
    result = measure(runner, loaded, question, tokens, runs, shown_progress(format_, 1))
    roofline = attained(Bundle.open(bundle), result, device, peaks)
    if format_ == "json":
        print_json({**result, "roofline": roofline})
    else:
        _print(result)
        click.echo(_roofline(roofline))


def _print(result: Measurement) -> None:
    from r1v_export.progress import size

    rows = [(name.removesuffix("_ms"), f"{ms:.2f}") for name, ms in result["stages_ms"].items()]
    click.echo(table(rows, ("stage", "ms")))
    click.echo(
        f"\n{result['engine']}, {result['threads']['count']} CPU threads ({result['threads']['source']}): "
        f"{result['prompt_tokens']} prompt tokens ({result['tiles']} tiles), "
        f"{result['new_tokens']} new tokens, median of {result['runs']} runs\n"
        f"first token after {result['first_token_ms']:.1f} ms, then {result['tokens_per_s']:.1f} tokens/s; "
        f"peak memory {size(result['peak_memory_bytes'])}\n"
    )


def _roofline(facts: RooflineFacts | NoRoofline) -> str:
    """What share of a GPU's peak rates was reached, or why it is unknown."""
    if facts["gpu"] is None:
        return f"no roofline: {facts['why']}; --roofline GPU compares with one of them"
    rows = [
        (stage, f"{row['measured_ms']:.2f}", f"{row['roofline_ms']:.3g}", _percent(row["fraction"]))
        for stage, row in facts["stages"].items()
    ]
    title = f"roofline of {facts['gpu']} ({facts['source']}); measured on {facts['ran_on']}"
    return title + "\n" + table(rows, ("stage", "ms", "roofline ms", "reached"))


def _percent(fraction: float | None) -> str:
    return "not measured" if fraction is None else f"{100 * fraction:.3g} %"
