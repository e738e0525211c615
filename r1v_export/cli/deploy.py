"""`r1v-export deploy`: a bundle for a server of another kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from r1v_export.cli.other_targets import vision_target_option
from r1v_export.cli.output import (
    LIBRARY_S_LOOP,
    TargetOption,
    WholeNumber,
    cache_mib_option,
    common_options,
    device_option,
    engine_option,
    image_cache_mib_option,
    max_rows_option,
    print_json,
    refuse_given,
    wrapped,
)
from r1v_export.cli.paths import OptionPath
from r1v_export.count import Count

if TYPE_CHECKING:
    from r1v_export.config import Device
    from r1v_export.deploy.triton.model_config import Backend


@click.group(name="deploy", short_help="Make a deployment of a bundle: a C++ project, or for Triton.")
def command() -> None:
    """Make a deployment of a bundle."""


_output_option = click.option("-o", "--output", "out", type=OptionPath(), required=True, help="A new folder.")


@command.command(short_help="A C++ project that answers with libr1v.")
@click.argument("bundle", type=OptionPath())
@_output_option
@common_options
def cpp(bundle: Path, out: Path, format_: str) -> None:
    """Write a CMake project whose program asks BUNDLE about an image, with libr1v and without Python."""
    from r1v_export.bundle import Bundle
    from r1v_export.deploy.cpp.project import write_project

    written = write_project(Bundle.open(bundle), out)
    _print(out, written, f"{out}: {Count(len(written), 'file')}; README.md says how to build and run them", format_)


@command.command(short_help="A Triton model repository, with Dockerfile and Helm chart.")
@click.argument("bundle", type=OptionPath())
@_output_option
@click.option(
    "--backend",
    type=click.Choice(["python", "r1v"]),
    default="python",
    show_default=True,
    help="What answers: Triton's Python backend, or libr1v in C++.",
)
@click.option("--target", cls=TargetOption, help="Engine of the bundle. [default: its first]")
@vision_target_option
@engine_option
@max_rows_option
@cache_mib_option
@image_cache_mib_option
@click.option(
    "--tiles",
    type=WholeNumber(1, 1024),
    default=16,
    show_default=True,
    help="Tiles in a batch of the vision graph, at most.",
)
@click.option(
    "--preprocessors",
    type=WholeNumber(1, 64),
    default=2,
    show_default=True,
    help="Processes that read images; threads with --backend r1v.",
)
@device_option
@common_options
@click.pass_context
def triton(
    context: click.Context,
    bundle: Path,
    out: Path,
    backend: Backend,
    target: str | None,
    vision_target: str,
    engine: str | None,
    max_rows: int,
    cache_mib: int,
    image_cache_mib: int,
    tiles: int,
    preprocessors: int,
    device: Device,
    format_: str,
) -> None:
    """Write BUNDLE as a model repository for Triton, with a Dockerfile, a compose file, a Helm chart and a README."""
    from r1v_export.bundle import Bundle
    from r1v_export.deploy.triton.repository import TritonOptions, write_repository

    if backend == "r1v":
        refuse_given(context, ("engine", "tiles"), "with --backend r1v, in which libr1v runs every graph", "omit it")
    elif engine is not None:
        refuse_given(context, ("cache_mib",), LIBRARY_S_LOOP, "omit it")
    options = TritonOptions(
        target=target,
        vision_target=vision_target,
        engine=engine,
        device=device,
        max_rows=max_rows,
        cache_mib=cache_mib,
        image_cache_mib=image_cache_mib,
        tiles=tiles,
        preprocessors=preprocessors,
        backend=backend,
    )
    written = write_repository(Bundle.open(bundle), out, options)
    _print(
        out,
        written,
        f"{out}: {Count(len(written), 'file')} and the bundle; README.md says how to start and ask it",
        format_,
    )


def _print(out: Path, written: list[Path], summary: str, format_: str) -> None:
    """What a deployment consists of: its files in JSON, their number in words."""
    if format_ == "json":
        print_json({"folder": str(out), "files": [path.relative_to(out).as_posix() for path in written]})
    else:
        click.echo(wrapped(summary))
