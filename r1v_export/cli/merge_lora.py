"""`r1v-export merge-lora`: a LoRA adapter becomes part of the weights."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from r1v_export.cli.output import common_options, print_json, print_summary, shown_progress
from r1v_export.cli.paths import OptionPath


@click.command(short_help="Merge a LoRA adapter into its weights.")
@click.argument("model")
@click.option("-o", "--output", "out", type=OptionPath(), required=True, help="Folder of the new model.")
@click.option(
    "--adapter",
    type=OptionPath(),
    help="Folder of an adapter of peft. [default: the adapters within MODEL]",
)
@common_options
def command(model: str, out: Path, adapter: Path | None, format_: str) -> None:
    """Write MODEL with its LoRA adapters merged: W + scale * B A, in float32, then in the weights' own type."""
    from r1v_export.checkpoint.merge_lora import LoraMerge
    from r1v_export.files import explain_full_disk

    merge = LoraMerge.open(model, adapter)
    with (
        shown_progress(format_, 1).stage("weights") as task,
        explain_full_disk(out),
    ):
        checkpoint = merge.write(out, task.report)
    if format_ == "json":
        print_json({"checkpoint": str(out), "notes": list(checkpoint.notes)})
    else:
        command = f"r1v-export build {shlex.quote(str(out))} -o BUNDLE"
        print_summary(f"{out}: merged and checked; build it with:", command)
