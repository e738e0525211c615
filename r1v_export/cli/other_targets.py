"""Options of what computes parts of an answer instead of the engine itself."""

from __future__ import annotations

from collections.abc import Callable

import click

from r1v_export.cli.output import Function, TargetOption
from r1v_export.targets.entry_points import names

AUTO = "auto"
_FASTEST = "[default: auto, the fastest that was compared and runs here]"


def _values() -> tuple[str, ...]:
    return (AUTO, *names())


def _option(flag: str, what: str) -> Callable[[Function], Function]:
    return click.option(flag, cls=TargetOption, values=_values, default=AUTO, help=f"{what} {_FASTEST}")


vision_target_option = _option("--vision-target", "Engine that encodes images.")
_decoder_target_option = _option("--decoder-target", "What decodes answers.")


def other_targets_options(function: Function) -> Function:
    """`--vision-target` and `--decoder-target`."""
    return vision_target_option(_decoder_target_option(function))
