"""How help is laid out: names stay whole in every width, and what an option's value may be stands in one bracket."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

_NON_BREAKING_HYPHEN = "\N{NON-BREAKING HYPHEN}"
_NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"

_TEXT_WIDTH = 34
"""Of the column of texts, at least: where a terminal is narrow, longer options have a line of their own."""

_BRACKETS = re.compile(r"(?:\s*\[[^\[\]]+\])+$")
"""The remarks at the end of an option's help, its author's and click's."""

_TOGETHER = re.compile(r"default: |[\d.]+ (?:to [\d.]+|or more|or less)")


class HelpFormatter(click.HelpFormatter):
    """Help that breaks no name, such as `--no-parity` or `llm_config.rope_theta`, which is searched and copied."""

    def write(self, string: str) -> None:
        """Write a string with its hyphens and spaces."""
        super().write(string.replace(_NON_BREAKING_HYPHEN, "-").replace(_NO_BREAK_SPACE, " "))

    def write_text(self, text: str) -> None:
        """Write a paragraph."""
        super().write_text(text.replace("-", _NON_BREAKING_HYPHEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write options or commands, each with its help: next to it, or below it where that would be too narrow."""
        rows = [(name, _with_one_bracket(text).replace("-", _NON_BREAKING_HYPHEN)) for name, text in rows]
        needed = max([_TEXT_WIDTH, *(len(word) for _, text in rows for word in text.split(" "))])
        room = self.width - self.current_indent - col_spacing - needed
        super().write_dl(rows, max(min(col_max, room), self.current_indent), col_spacing)


def _with_one_bracket(text: str) -> str:
    """`Runs. [default: 5; 1 or more]`, where no line break parts `default:` from its value, or a range."""
    found = _BRACKETS.search(text)
    if found is None:
        return text
    remarks = "; ".join(re.findall(r"\[([^\[\]]+)\]", found[0]))
    whole = _TOGETHER.sub(lambda words: words[0].replace(" ", _NO_BREAK_SPACE), remarks)
    return f"{text[: found.start()]} [{whole}]"
