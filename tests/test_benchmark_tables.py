"""benchmarks/tables.py: the figures of the pages are those of the committed results."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.documents import PROJECT

RESULTS = PROJECT / "benchmarks/results"
PAGE = PROJECT / "docs/benchmarks.md"


@pytest.fixture(scope="module")
def tables() -> Any:
    """The script, which imports its neighbors."""
    path = PROJECT / "benchmarks/tables.py"
    before = [*sys.path]
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_tables", path)
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the committed results."""
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


def changed(results: Path, source: str, name: str, change: Any) -> None:
    """Write a results file that differs from another one."""
    content = json.loads((results / source).read_text(encoding="utf-8"))
    change(content)
    (results / name).write_text(json.dumps(content), encoding="utf-8")


def test_the_pages_show_what_the_results_say(tables: Any) -> None:
    for page, found in tables.pages().items():
        text = page.read_text(encoding="utf-8")
        assert tables.filled(text, found) == text, f"{page.name}: run python benchmarks/tables.py"


def test_no_figure_stands_outside_of_the_tables() -> None:
    text = re.sub(r"<!-- [\w-]+: written by .*?<!-- end -->", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    figures = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text)
    # 1.00 and 2.00 explain what a cell means; 3.5 GB is the size of a download.
    assert {*figures} <= {"1.00", "2.00", "3.5"}


def test_a_figure_that_no_file_has_is_found(tables: Any) -> None:
    text, found = PAGE.read_text(encoding="utf-8"), tables.pages()[PAGE]
    figure = re.search(r"\| \*\*(\d\.\d\d)\*\* \|", text)
    assert figure is not None
    altered = text.replace(figure[0], "| **9.99** |", 1)
    assert tables.filled(altered, found) == text


def test_a_newer_file_takes_the_place_of_what_it_has(tables: Any, results: Path) -> None:
    def four_tiles_twice_as_slow(content: dict[str, Any]) -> None:
        (_, found), *_ = content["tiles"].items()
        for name, system in found["systems"].items():
            if tables.WHOLE.get(name) == tables.INT4:
                system["first_s"] *= 2
        content["tiles"] = {"4": found}

    source = sorted(results.glob("*-whole-answers.json"))[-1].name
    changed(results, source, "2999-01-01-whole-answers.json", four_tiles_twice_as_slow)
    columns = {column.title: column for column in tables.answer(results)}
    assert columns["1 tile: first token"].results.path.name == source
    newer, older = columns["4 tiles: first token"], columns["1 tile: first token"]
    assert newer.results.path.name == "2999-01-01-whole-answers.json"
    peer = "llama.cpp, Q4_0"
    assert float(newer.shown()[peer]) == pytest.approx(2 * float(older.shown()[peer]), abs=0.02)


def test_a_peer_that_is_ahead_is_named_with_its_ratio(tables: Any, results: Path) -> None:
    def faster(content: dict[str, Any]) -> None:
        engines = content["lengths"]["1024"]["engines"]
        ours = engines["r1v-export int8"]["decode_tokens_per_s"]
        engines["llama.cpp Q4_0"]["decode_tokens_per_s"] = 3 * ours
        for name, steps_s in (("r1v-export int8", (2.0, 4.0)), ("llama.cpp Q4_0", (1.0, 1.0))):
            engines[name]["readings"] = [{"steps_s": [each], "prefill_s": 1.0} for each in steps_s]

    source = sorted(results.glob("*-long-contexts-int4.json"))[-1].name
    changed(results, source, "2999-01-01-long-contexts-int4.json", faster)
    text = tables.comparison(tables.contexts(results), tables.SYSTEMS, {})
    assert "* llama.cpp, Q4_0: 3.00 (1,024 tokens: decode, by turn 2.00 to 4.00). Cause not known." in text
    assert re.search(r"\| llama\.cpp, Q4_0 \|[^\n]*\*\*3\.00\*\*", text)


def test_less_memory_is_better(tables: Any) -> None:
    for column in tables.memory(RESULTS):
        best = min(column.values, key=column.values.__getitem__)
        assert column.cells()[best].startswith("**")
        assert all(float(cell) < float(column.shown()[column.reference]) for cell in column.ahead().values())


def test_a_new_system_has_a_row_without_a_change_of_the_script(tables: Any, results: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        systems = content["tiles"]["1"]["systems"]
        systems["new"] = systems["llama.cpp Q4_0"]

    source = sorted(results.glob("*-whole-answers.json"))[-1].name
    changed(results, source, source, add)
    assert "\n| new | " in tables.comparison(tables.answer(results), tables.SYSTEMS, {})


def test_a_page_without_a_place_is_refused(tables: Any) -> None:
    with pytest.raises(ValueError, match="decode"):
        tables.filled("# Benchmarks\n", {"decode": "| |"})
