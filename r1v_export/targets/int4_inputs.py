"""What a CPU multiplies 4-bit weights with: the option `int4_inputs` of targets whose runtime can round."""

from __future__ import annotations

from typing import Literal

from r1v_export.config import BuildConfig
from r1v_export.errors import UsageError

Int4Inputs = Literal["int8", "exact"]
"""Inputs that are rounded to 8 bits in blocks, which is faster, or those that the graph has."""


def chosen_int4_inputs(given: Int4Inputs | None, config: BuildConfig) -> Int4Inputs:
    """What the engine of a build multiplies 4-bit weights with: if not given, int8 where a CPU has such weights."""
    if given is not None:
        return given
    return "int8" if config.precision == "int4" and config.device == "cpu" else "exact"


def require_int4_weights(given: Int4Inputs | None, config: BuildConfig) -> None:
    """Check that there are 4-bit weights if their inputs are to be rounded.

    Raises:
        UsageError: there are none.
    """
    if given == "int8" and config.precision != "int4":
        raise UsageError(
            "There are no 4-bit weights whose inputs could be rounded to 8 bits.",
            where="int4_inputs",
            expected="exact",
            found=f"int8, in precision {config.precision}",
            fix="omit int4_inputs, or quantize to 4 bits: --precision int4",
        )
