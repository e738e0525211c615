"""README.md and docs/: their code runs, and the output that they show is the real one."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from r1v_export.build_file import load_config
from r1v_export.targets import registry
from tests.documents import PROJECT, Block, blocks_of, make_clone, run, runnable

README = blocks_of(PROJECT / "README.md")
DOCUMENTS = (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")))
ALL = [block for document in DOCUMENTS for block in blocks_of(document)]
BUILDS = [block for block in ALL if block.document == "api.md"]
"""Blocks that change out/demo; they come last."""

REASONS = ("installs", "needs TensorRT", "needs a GPU", "needs a checkpoint of 38 billion parameters")
"""What an unattended machine may lack: why a block may be skipped."""
ANOTHER_TEST = re.compile(r"(tests/\S+\.py) does\b.*")
"""A block that the named test runs."""


@pytest.fixture(scope="module")
def printed(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Block], str]:
    """What a block prints in a fresh clone, where it is run once."""
    clone = make_clone(nano_bundle, tmp_path_factory.mktemp("clone"))
    return cache(lambda block: run(block, clone))


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    sorted(runnable(ALL, "bash", "python"), key=lambda block: block in BUILDS),
    ids=lambda block: block.title,
)
def test_a_code_block_runs_in_a_fresh_clone(block: Block, printed: Callable[[Block], str]) -> None:
    printed(block)


def test_the_answer_shown_is_the_answer_given(printed: Callable[[Block], str]) -> None:
    asked = next(i for i, block in enumerate(README) if block.code.startswith("r1v-export run"))
    assert printed(README[asked]) == README[asked + 1].code


@pytest.mark.parametrize("block", runnable(ALL, "yaml"), ids=lambda block: block.title)
def test_a_build_file_shown_is_one(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "build.yaml"
    file.write_text(block.code, encoding="utf-8")
    config = registry.resolved(load_config(file, {}))
    assert config.targets


def test_only_what_a_machine_may_lack_is_not_run() -> None:
    elsewhere = [match[1] for block in ALL if (match := ANOTHER_TEST.fullmatch(block.skip))]
    assert [file for file in elsewhere if not (PROJECT / file).is_file()] == []
    skipped = [block for block in ALL if block.skip and not ANOTHER_TEST.fullmatch(block.skip)]
    assert skipped
    assert [block for block in skipped if not block.skip.startswith(REASONS)] == []
    assert all("make " in block.code for block in skipped if block in README)


def test_every_block_names_its_language() -> None:
    assert [block.title for block in ALL if not block.language] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_file_that_it_links_to_exists(document: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_heading_that_it_links_to_exists(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*\.md|)#([^)]+)\)", document.read_text(encoding="utf-8"))
    targets = [(document.parent / file if file else document, anchor) for file, anchor in links]
    assert [f"{file.name}#{anchor}" for file, anchor in targets if anchor not in anchors(file)] == []


def anchors(document: Path) -> set[str]:
    """What GitHub makes of headings."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
