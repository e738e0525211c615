"""A path that is an option in truth, or empty, is refused before anything is written."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from r1v_export.cli import main


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "-o", "--format", "json"],
        ["build", "--config", "--dry-run"],
        ["build", "-o", "-q"],
        ["calibrate", "-o", "--debug"],
        ["merge-lora", "MODEL", "-o", "--format"],
        ["engine", "BUNDLE", "-o", "--print-command"],
        ["deploy", "cpp", "BUNDLE", "-o", "--format"],
        ["deploy", "triton", "BUNDLE", "-o", "--format"],
        ["check", "BUNDLE", "--report", "--questions"],
        ["diff", "A", "B", "--report", "--format"],
        ["run", "BUNDLE", "--log-file", "--no-think", "?"],
    ],
)
def test_an_option_is_not_taken_for_the_path_before_it(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(arguments) == 2
    said = capsys.readouterr()
    taken = next(word for before, word in pairwise(arguments) if before[0] == word[0] == "-")
    assert f"{taken} is an option and no path; if it is one, write ./{taken}." in said.err + said.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "-o", "", "--dry-run"],
        ["build", "--precision", "fp8", "--calib", "", "--dry-run"],
        ["build", "--precision", "fp8", "--calibrated", "", "--dry-run"],
        ["calibrate", "--precision", "fp8", "--calib", "", "-o", "out"],
        ["init", ""],
        ["synth", ""],
        ["verify", ""],
        ["run", "", "Hi"],
        ["serve", ""],
        ["check", ""],
        ["bench", ""],
        ["diff", "", "b"],
        ["diff", "a", ""],
        ["engine", ""],
        ["deploy", "cpp", "", "-o", "out"],
        ["deploy", "triton", "", "-o", "out"],
    ],
)
def test_an_empty_path_is_not_the_current_folder(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    assert "The path is empty." in capsys.readouterr().err


def test_a_path_that_begins_with_a_dash_can_be_written_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "--odd.yaml").write_text("model: r1v-nano\n")
    assert main.run(["build", "--config", "./--odd.yaml", "--print-config"]) == 0
    assert "r1v-nano" in capsys.readouterr().out
