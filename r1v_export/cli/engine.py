"""`r1v-export engine`: an engine from what a bundle holds for a target that compiles with a program of its own."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from r1v_export.cli.output import (
    WholeNumber,
    common_options,
    print_json,
    refuse_given,
    shown_progress,
)
from r1v_export.cli.paths import OptionPath
from r1v_export.count import Count


@click.command(short_help="Build an engine from a bundle's checkpoint.")
@click.argument("bundle", type=OptionPath())
@click.option(
    "-o",
    "--output",
    type=OptionPath(),
    default=Path("engine"),
    show_default=True,
    help="Folder of the engine; new or empty.",
)
@click.option("--workers", type=WholeNumber(min=1), help="GPUs to build on at a time. [default: one for each rank]")
@click.option("--program", type=OptionPath(), help="The library's program. [default: the one on PATH]")
@click.option("--print-command", is_flag=True, help="Show the command, also for a container; build nothing.")
@common_options
def command(
    bundle: Path, output: Path, workers: int | None, program: Path | None, print_command: bool, format_: str
) -> None:
    """Build the checkpoint of BUNDLE into an engine with the library's own program, for the GPUs of this machine."""
    from r1v_export.bundle import Bundle
    from r1v_export.targets.registry import engine_compiler

    target = engine_compiler(Bundle.open(bundle))
    plan = target.plan_engine(bundle, output, workers)
    if print_command:
        why = "with --print-command, which runs no program"
        refuse_given(click.get_current_context(), ("program",), why, "omit it")
        if format_ == "json":
            print_json({"command": plan.arguments, "container": plan.recipe})
        else:
            click.echo(f"{shlex.join(plan.arguments)}\n\n{plan.recipe}")
        return
    target.build_engine(plan, program, shown_progress(format_, 1))
    if format_ == "json":
        print_json({"engine": str(output), "command": plan.arguments})
    else:
        click.echo(f"{output}: engine for {Count(plan.ranks, 'GPU')}, as asked for")
