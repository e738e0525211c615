"""Paths as options and arguments take them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class OptionPath(click.Path):
    """A path that an option or argument takes: never empty, and never another option that was typed in its place.

    `-o --format json` would otherwise make a folder `--format`, and take `json` for the next argument.
    """

    def __init__(self, path_type: type[Path] | type[str] = Path) -> None:
        super().__init__(path_type=path_type)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a usage error if it is empty or looks like an option."""
        text = os.fspath(value)
        if not text:
            self.fail("The path is empty.", param, ctx)
        if text.startswith("-"):
            self.fail(f"{text} is an option and no path; if it is one, write ./{text}.", param, ctx)
        return super().convert(value, param, ctx)
