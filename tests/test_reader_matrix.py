"""The matrix of docs/readers.md against the committed results, and the shape of those results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.documents import PROJECT

_SPEC = importlib.util.spec_from_file_location("reader_matrix", PROJECT / "benchmarks/reader_matrix.py")
assert _SPEC is not None
assert _SPEC.loader is not None
reader_matrix = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reader_matrix)

ROW = {
    "artifact": "r1v-nano int4-awq",
    "target": "compressed-tensors",
    "precision": "int4-awq",
    "reader": "vLLM",
    "version": "0.32.0",
    "loads": True,
    "computes": True,
    "equal": 99,
    "of": 100,
}
REFUSED = ROW | {"loads": False, "computes": False, "equal": None, "of": None, "error": "no such | `algorithm`"}


def save(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps({"matrix": rows}), encoding="utf-8")


def test_the_documented_matrix_is_that_of_the_results() -> None:
    document = reader_matrix.DOCUMENT.read_text(encoding="utf-8")
    assert reader_matrix.written(document, reader_matrix.table(reader_matrix.rows())) == document


def test_a_later_result_replaces_an_earlier_one(tmp_path: Path) -> None:
    save(tmp_path, "2026-01-02-x.json", ROW)
    save(tmp_path, "2026-01-01-x.json", REFUSED)
    assert reader_matrix.rows(tmp_path) == [ROW]


def test_another_device_is_a_row_of_its_own(tmp_path: Path) -> None:
    on_gpu = ROW | {"device": "H100"}
    save(tmp_path, "2026-01-01-x.json", ROW, on_gpu)
    assert reader_matrix.rows(tmp_path) == [ROW, on_gpu]
    assert "vLLM 0.32.0, H100 |" in reader_matrix.table([on_gpu])


def test_a_row_of_the_table_says_what_was_measured() -> None:
    computed, refused = reader_matrix.table([ROW, REFUSED]).splitlines()[2:]
    assert computed == "| `compressed-tensors` | r1v-nano int4-awq | vLLM 0.32.0 | yes | yes | 99 of 100 |"
    assert refused.endswith("| no: `no such / 'algorithm'` | |  |")


def test_results_of_other_kinds_have_no_rows(tmp_path: Path) -> None:
    (tmp_path / "2026-01-01-speed.json").write_text('{"machine": {}}', encoding="utf-8")
    (tmp_path / "2026-01-01-list.json").write_text("[1]", encoding="utf-8")
    assert reader_matrix.rows(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        {"reader": None},
        {"loads": 1},
        {"loads": False},  # but it computes
        {"equal": 101},
        {"equal": True},
        {"equal": None},
        {"computes": False, "equal": None, "of": None},  # without an error
        {"compared": "words"},
    ],
    ids=json.dumps,
)
def test_a_row_of_another_shape_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    save(tmp_path, "2026-01-01-x.json", ROW | change)
    with pytest.raises(ValueError, match=r"2026-01-01-x\.json"):
        reader_matrix.rows(tmp_path)
