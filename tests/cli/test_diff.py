"""What `diff` prints, on terminals of any width."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.cli import main
from r1v_export.cli.diff import _as_text
from r1v_export.diff.compare import BundleDiff, FileDifferences, Row, TensorDifference

COMMAND = "r1v-export build r1v-nano --precision {} --target onnxruntime"


def diff(*rows: Row, differing: tuple[str, ...] = ("manifest.json",)) -> BundleDiff:
    files = FileDifferences(equal=31, differing=differing, first_only=(), second_only=())
    return BundleDiff("fp8", "int4", {"settings": rows}, files, None)


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    row = Row("command", COMMAND.format("fp8"), COMMAND.format("int4"))
    text = _as_text(diff(row, Row("precision", "fp8", "int4")))
    assert max(map(len, text.splitlines())) <= columns
    words = " ".join(text.split())
    for precision in ("fp8", "int4"):
        assert COMMAND.format(precision) in words
    side_by_side = any("--precision fp8" in line and "--precision int4" in line for line in text.splitlines())
    assert side_by_side == (columns == 200)


def test_bundles_are_called_equal_by_their_manifests_for_no_file_is_hashed() -> None:
    text = _as_text(diff(Row("precision", "fp8", "fp8"), differing=()))
    assert text.startswith("equal: 31 files with the same hashes in both manifests")
    assert "verify" in text


def test_the_tensor_that_differs_is_named_within_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    tensor = TensorDifference(
        "graphs/vision.onnx", "vision_model.encoder.layers.0.attn.qkv.weight", "FLOAT [2]", "none"
    )
    text = _as_text(BundleDiff("fp8", "int4", {}, FileDifferences(1, ("a",), (), ()), tensor))
    assert max(map(len, text.splitlines())) <= 60
    assert "weight of graphs/vision.onnx" in " ".join(text.split())


def test_a_tensor_of_one_bundle_alone_stands_at_the_bundles_names() -> None:
    tensor = TensorDifference("graphs/vision.onnx", "qkv.weight", "FLOAT [2]", "not there")
    text = _as_text(BundleDiff("fp32", "int4", {}, FileDifferences(1, ("a",), (), ()), tensor))
    assert text.splitlines()[-2:] == ["  fp32  FLOAT [2]", "  int4  not there"]


@pytest.mark.parametrize("command", ["diff {0} {0}", "inspect {0} --roofline H100"])
def test_the_page_that_was_written_is_named_and_one_that_cannot_be_says_what_to_do(
    command: str, tiny_built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = command.format(tiny_built).split()
    page = tmp_path / "page.html"
    assert main.run([*line, "--report", str(page)]) == 0
    assert capsys.readouterr().out.endswith(f"report: {page}\n")
    assert page.stat().st_size > 0
    assert main.run([*line, "--report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "found:    Is a directory" in said
    assert "name a file, such as page.html" in said
