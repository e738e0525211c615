"""Fingerprints: what changes them, and what does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1v_export.manifest import FileEntry, StageEntry
from r1v_export.pipeline import provenance, stage
from r1v_export.pipeline.stage import Stage, fingerprint

SOURCES = {"model.safetensors": "1" * 64, "other": "2" * 64}
FINISHED = {"before": StageEntry(fingerprint="3" * 64, files={"graphs/x": FileEntry(sha256="4" * 64, size=1)})}


def make(folder: Path, inputs: Any, on_progress: Any) -> None: ...


STAGE = Stage(
    "engine",
    make,
    code=("errors.py",),
    tools=("torch",),
    settings={"a": 1},
    sources=("model.safetensors",),
    after=("before",),
)
BASE = fingerprint(STAGE, SOURCES, FINISHED)


def test_the_same_ingredients_have_the_same_fingerprint() -> None:
    assert fingerprint(replace(STAGE), dict(SOURCES), dict(FINISHED)) == BASE


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"settings": {"a": 2}},
        {"code": ("contract.py",)},
        {"tools": ("numpy",)},
        {"sources": ("other",)},
        {"after": ()},
    ],
)
def test_another_ingredient_makes_another_fingerprint(changes: dict[str, Any]) -> None:
    assert fingerprint(replace(STAGE, **changes), SOURCES, FINISHED) != BASE


def test_another_content_of_an_input_makes_another_fingerprint() -> None:
    entry = FileEntry(sha256="5" * 64, size=1)
    finished = {"before": StageEntry(fingerprint="3" * 64, files={"graphs/x": entry})}
    assert fingerprint(STAGE, SOURCES, finished) != BASE
    assert fingerprint(STAGE, {**SOURCES, "model.safetensors": entry.sha256}, FINISHED) != BASE


def test_how_an_input_came_about_does_not_count() -> None:
    finished = {"before": StageEntry(fingerprint="9" * 64, files=FINISHED["before"].files)}
    assert fingerprint(STAGE, SOURCES, finished) == BASE


def test_estimates_do_not_count() -> None:
    assert fingerprint(replace(STAGE, size_bytes=6, seconds=7.0), SOURCES, FINISHED) == BASE


def test_another_version_of_a_tool_makes_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "tool_versions", lambda names: {"torch": "99"})
    assert fingerprint(STAGE, SOURCES, FINISHED) != BASE


def test_code_counts_by_content_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    (tmp_path / "part").mkdir()
    source = tmp_path / "part" / "a.py"
    source.write_text("x = 1")
    first = provenance.code_digest(["part"])
    source.write_text("x = 2")
    assert provenance.code_digest(["part"]) != first
    source.write_text("x = 1")
    assert provenance.code_digest(["part"]) == first
    source.rename(tmp_path / "part" / "b.py")
    assert provenance.code_digest(["part"]) != first


def test_code_that_is_not_there_is_no_silent_nothing() -> None:
    with pytest.raises(FileNotFoundError):
        provenance.code_digest(["no_such_part"])
