"""Code blocks of Markdown documents, and the clone that they are run in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[1]

_BLOCK = re.compile(
    r"(?:<!-- not run by the tests: (?P<skip>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```\n", re.DOTALL
)


class Block(NamedTuple):
    """A code block.

    Attributes:
        skip: why the tests do not run it; "" if they do.
    """

    document: str
    language: str
    code: str
    skip: str

    @property
    def title(self) -> str:
        """Document and first line, as the name of a test."""
        return f"{self.document}: {self.code.splitlines()[0]}"


def blocks_of(document: Path) -> list[Block]:
    """All code blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(document.name, match["language"], match["code"], match["skip"] or "") for match in _BLOCK.finditer(text)
    ]


def runnable(blocks: list[Block], *languages: str) -> list[Block]:
    """Blocks of these languages that the tests run."""
    return [block for block in blocks if block.language in languages and not block.skip]


def run(block: Block, folder: Path) -> str:
    """Run a block as a reader would, and return what it prints."""
    shell = {"bash": ["bash", "-e", "-c"], "python": [sys.executable, "-c"]}[block.language]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*shell, block.code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_clone(bundle: Path, folder: Path) -> Path:
    """What a reader has after `make demo`, as far as the blocks need it."""
    shutil.copytree(bundle, folder / "out" / "demo")
    shutil.copytree(PROJECT / "examples", folder / "examples", ignore=shutil.ignore_patterns("train_nano"))
    return folder
