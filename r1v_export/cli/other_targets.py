"""Options of what computes parts of an answer instead of the engine itself."""

from __future__ import annotations

import click

from r1v_export.cli.output import Function, TargetOption
from r1v_export.targets.entry_points import names

AUTO = "auto"
_FASTEST = "[default: auto, the fastest that was compared and runs here]"


def other_targets_options(function: Function) -> Function:
    """`--vision-target` and `--decoder-target`."""
    options = {"vision_target": "Engine that encodes images.", "decoder_target": "What decodes answers."}
    for name, what in reversed(options.items()):
        flag, help_ = f"--{name.replace('_', '-')}", f"{what} {_FASTEST}"
        function = click.option(flag, cls=TargetOption, values=_values, default=AUTO, help=help_)(function)
    return function


def _values() -> tuple[str, ...]:
    return (AUTO, *names())
