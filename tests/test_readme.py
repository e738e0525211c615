"""README.md: its code runs, and the output that it shows is the real one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
SKIP = "<!-- not run by the tests: installs -->"

_BLOCK = re.compile(r"(?P<skip><!-- not run[^\n]*-->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)


class Block(NamedTuple):
    language: str
    code: str
    skipped: bool


BLOCKS = [Block(match["language"], match["code"], bool(match["skip"])) for match in _BLOCK.finditer(README)]


@pytest.fixture(scope="module")
def clone(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has after `make demo`, as far as the blocks need it."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(nano_bundle, folder / "out" / "demo")
    shutil.copytree(PROJECT / "examples", folder / "examples", ignore=shutil.ignore_patterns("train_nano"))
    return folder


def run(block: Block, folder: Path) -> str:
    shell = {"bash": ["bash", "-e", "-c"], "python": [sys.executable, "-c"]}[block.language]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*shell, block.code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.language in ("bash", "python") and not block.skipped],
    ids=lambda block: block.code.split("\n")[0],
)
def test_a_code_block_runs_in_a_fresh_clone(block: Block, clone: Path) -> None:
    run(block, clone)


def test_the_answer_shown_is_the_answer_given(clone: Path) -> None:
    asked = next(i for i, block in enumerate(BLOCKS) if block.code.startswith("r1v-export run"))
    assert run(BLOCKS[asked], clone) == BLOCKS[asked + 1].code


def test_only_what_installs_is_not_run() -> None:
    skipped = [block.code for block in BLOCKS if block.skipped]
    assert skipped
    assert all("make " in code for code in skipped)


def test_every_file_that_it_links_to_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (PROJECT / link).exists()] == []
