"""The text of an error on stderr, within the width of a terminal."""

from __future__ import annotations

import re
import sys

from r1v_export.progress import fitted

_NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"

LABEL = "error: "
_NAME = re.compile(r"^  [a-z]+: +")
_COMMAND = re.compile(r"`[^`]*`|\b(?:r1v-export|pip) (?:(?![;,] | \().)*")


def fitted_error(message: str) -> str:
    """An error's text with lines broken at words where stderr is a terminal, but within commands, which are copied."""
    what, *details = message.split("\n")
    lines = [line.removeprefix(LABEL) for line in fitted(LABEL + what, sys.stderr, indent=2)]
    fixed = next((i + 1 for i, line in enumerate(details) if line.startswith("  fix:")), len(details))
    for line in details[:fixed]:
        whole = _COMMAND.sub(lambda command: command[0].replace(" ", _NO_BREAK_SPACE), line)
        whole = _NAME.sub(lambda name: name[0].replace(" ", _NO_BREAK_SPACE), whole)  # stands with what it names
        lines += (piece.replace(_NO_BREAK_SPACE, " ") for piece in fitted(whole, sys.stderr, indent=12))
    return "\n".join([*lines, *details[fixed:]])  # further lines of a fix are a script
