"""`r1v-export bench`: latency by stage and by token, tokens per second, load, peak memory, share of the roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from r1v_export import build_extra
from r1v_export.cli.images import SOURCE, allow_url_option, image_opener, require_readable_stdin
from r1v_export.cli.other_targets import other_targets_options
from r1v_export.cli.output import (
    WholeNumber,
    common_options,
    device_option,
    engine_option,
    model_option,
    print_json,
    refuse_unread_model,
    shown_progress,
    table,
    target_option,
    wrapped,
    wrapped_table,
)
from r1v_export.cli.paths import OptionPath
from r1v_export.cli.threads import threads_option
from r1v_export.count import Count
from r1v_export.errors import UsageError
from r1v_export.quoting import shorten_text

if TYPE_CHECKING:
    from PIL import Image

    from r1v_export.config import Device
    from r1v_export.pipeline.roofline_report import NoRoofline, RooflineFacts
    from r1v_export.roofline.devices import DeviceSpec
    from r1v_export.runner.bench import Distribution, Measurement

_LATENCIES = {
    "first_token": "first token",
    "last_token": "last token",
    "time_per_output_token": "time per output token",
    "inter_token": "between two tokens",
}
"""Of `Measurement.latency_ms`, as they are shown."""

_MAX_BATCH = 1024
"""Sequences; each has an image and a part of the key-value cache of its own."""

_BUSY_CPUS = 0.25
"""CPUs that others may keep busy without a remark."""


@click.command(short_help="Measure a bundle's engine.")
@click.argument("bundle", type=OptionPath())
@click.option("--image", metavar=SOURCE, help="Ask about this image. [default: a synthetic one]")
@allow_url_option
@click.option("--tiles", type=WholeNumber(min=1), help="Tiles of the synthetic image, such as 13. [default: 1]")
@click.option("--question", default="What do you see?", show_default=True, help="What to ask.")
@target_option
@other_targets_options
@engine_option
@model_option
@click.option("--tokens", type=WholeNumber(min=2), default=64, show_default=True, help="Tokens of each answer.")
@click.option(
    "--runs", type=WholeNumber(min=1), default=5, show_default=True, help="Runs after the warm-up; medians count."
)
@click.option("--batch", type=WholeNumber(1, _MAX_BATCH), default=1, show_default=True, help="Sequences at once.")
@click.option(
    "--roofline", "gpu", metavar="GPU", help="A GPU to compare with, such as H100. [default: the one that it runs on]"
)
@device_option
@threads_option
@common_options
def command(
    bundle: Path,
    image: str | None,
    allow_url: bool,
    tiles: int | None,
    question: str,
    target: str | None,
    vision_target: str,
    decoder_target: str,
    engine: str | None,
    model: str | None,
    tokens: int,
    runs: int,
    batch: int,
    gpu: str | None,
    device: Device,
    format_: str,
) -> None:
    """Measure BUNDLE's engine on this machine, by some runs of one question.

    With --batch, that many sequences begin at the same moment, with an image each unless --image gives one for all.
    Times are those of a user who waits: they begin with the question and the image's file, and end with the first and
    the last token. A warm-up comes before the runs and does not count. The load of the machine during the runs is
    shown: times of a busy machine are not those of the engine. --format json has the time of every token.
    """
    from r1v_export.bundle import Bundle
    from r1v_export.pipeline.roofline_report import attained
    from r1v_export.runner.bench import measure
    from r1v_export.runner.open_runner import open_runner

    refuse_unread_model(target)
    _require_one_source(image, tiles)
    peaks = _peaks(gpu, batch)
    runner = open_runner(bundle, target, model, device, engine, False, vision_target, decoder_target)
    asked = None if image is None else _reread(image, image_opener(runner.image_policy, allow_url))
    result = measure(runner, asked, question, tokens, runs, shown_progress(format_, 1), batch, tiles or 1)
    roofline = attained(Bundle.open(bundle), result, device, peaks)
    if format_ == "json":
        print_json({**result, "roofline": roofline})
    else:
        _print(result)
        click.echo(_roofline(roofline))


def _require_one_source(image: str | None, tiles: int | None) -> None:
    """Refuse a number of tiles for an image that has its own, and an image that would have to be typed."""
    require_readable_stdin([] if image is None else [image])
    if image is not None and tiles is not None:
        raise UsageError(
            "An image has the tiles that it has.",
            where="--image --tiles",
            expected="one of the two options",
            found=f"--image {shorten_text(image, 80)} and --tiles {tiles}",
            fix="omit --tiles, or --image",
        )


def _reread(source: str, opener: Callable[[str], Image.Image]) -> Image.Image | Callable[[], Image.Image]:
    """What reads an image's file again for every question; or the image, where it can be read once or is far away."""
    return partial(opener, source) if Path(source).is_file() else opener(source)


def _peaks(gpu: str | None, batch: int) -> DeviceSpec | None:
    """The peak rates of the GPU to compare with, if one is named."""
    if gpu is None:
        return None
    if batch > 1:
        raise UsageError("The roofline is that of one sequence.", found=f"--batch {batch}", fix="omit one option")
    build_extra.require()
    from r1v_export.roofline.devices import device

    return device(gpu)


def _print(result: Measurement) -> None:
    click.echo(wrapped_table(_setting(result)))
    rows = [_latency_row(name, result["latency_ms"][key]) for key, name in _LATENCIES.items()]
    click.echo("\n" + table(rows, ("ms", "p50", "p90", "p99", "max", "values")))
    stages = [(name.removesuffix("_ms"), f"{ms:.2f}") for name, ms in result["stages_ms"].items()]
    click.echo("\n" + table(stages, ("stage", "ms, median")))
    rates = [("each sequence", f"{result['tokens_per_s']:.1f} tokens/s after its first token")]
    rates += [("all together", f"{result['total_tokens_per_s']:.1f} tokens/s from question to last token")]
    click.echo("\n" + wrapped_table(rates))
    for note in _notes(result):
        click.echo("\n" + wrapped(note))
    click.echo()


def _setting(result: Measurement) -> list[tuple[str, str]]:
    """What was measured, and on which machine."""
    from r1v_export.progress import size

    load, threads = result["load"], result["threads"]
    before, after = load["load_average"]
    return [
        ("engine", result["engine"]),
        ("threads", f"{threads['count']} ({threads['source']})"),
        ("sequences", f"{result['batch']} at once"),
        ("runs", f"{result['runs']}, after a warm-up"),
        ("image", _image(result)),
        ("prompt", str(Count(result["prompt_tokens"], "token"))),
        ("answer", str(Count(result["new_tokens"], "token"))),
        ("peak memory", f"{size(result['peak_memory_bytes'])} of this process"),
        (
            "load",
            f"{load['own_cpus']:.2f} of {load['cpus']} CPUs by this process, {load['other_cpus']:.2f} by others; "
            f"load average {before:.2f}, then {after:.2f}",
        ),
    ]


def _image(result: Measurement) -> str:
    image = result["image"]
    origin = {"file": "read from its file in each run", "memory": "decoded before the runs", "synthetic": "synthetic"}
    size = f"{image['width']} x {image['height']} pixels"
    return f"{size}, {Count(result['tiles'], 'tile')}, {origin[image['source']]}"


def _latency_row(name: str, found: Distribution) -> tuple[str, ...]:
    values = (found["p50"], found["p90"], found["p99"], found["max"])
    return (name, *("-" if value is None else f"{value:.2f}" for value in values), str(found["values"]))


def _notes(result: Measurement) -> Iterator[str]:
    """What a reader could take the numbers for, and should not."""
    if result["load"]["other_cpus"] > _BUSY_CPUS:
        yield "Other processes were busy: measure again on an idle machine before comparing."
    if result["latency_ms"]["inter_token"]["values"] == 0:
        yield "The engine gave all tokens of an answer at once: time of a token was not measured."
    later = "requests that arrive later, " if result["batch"] > 1 else ""
    yield f"Not measured: loading the engine, a server around it, {later}a GPU's memory."


def _roofline(facts: RooflineFacts | NoRoofline) -> str:
    """What share of a GPU's peak rates was reached, or why it is unknown."""
    if facts["gpu"] is None:
        return wrapped(f"no roofline: {facts['why']}")
    rows = [
        (stage, f"{row['measured_ms']:.2f}", f"{row['roofline_ms']:.3g}", _percent(row["fraction"]))
        for stage, row in facts["stages"].items()
    ]
    title = wrapped(f"roofline of {facts['gpu']} ({facts['source']}); measured on {facts['ran_on']}")
    return title + "\n" + table(rows, ("stage", "ms", "roofline ms", "reached"))


def _percent(fraction: float | None) -> str:
    return "not measured" if fraction is None else f"{100 * fraction:.3g} %"
