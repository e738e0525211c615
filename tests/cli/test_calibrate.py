"""Options of `calibrate` that contradict each other or have a wrong value: what is said, and what to do next."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.cli import main


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a calibration that is a usage error."""
    assert main.run(["calibrate", *arguments, "-o", str(folder / "out")]) == 2
    assert not any(folder.iterdir())
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "fix"),
    [("4", "write 4GB for gigabytes"), ("4gb", "write a number and a unit, such as 4GiB"), ("", "such as 4GiB")],
)
@pytest.mark.parametrize("command", ["calibrate", "build"])
def test_memory_without_a_known_unit_is_refused_with_units_and_what_was_meant(
    command: str, size: str, fix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--precision", "fp8", "--activation-memory", size, "-o", str(tmp_path / "out")]
    assert main.run([command, *options]) == 2
    said = capsys.readouterr().err
    assert "--activation-memory" in said
    assert "expected: a number and a unit: B, kB, MB, GB" in said
    assert fix in said.partition("fix: ")[2]


@pytest.mark.parametrize("other", [["--ray", "auto"], ["--shards", "2"], ["--ray", "auto", "--shards", "2"]])
def test_one_shard_is_not_for_a_cluster_nor_for_all_shards(
    other: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(["--precision", "fp8", "--shard", "1/2", *other], tmp_path, capsys)
    assert "Cannot combine --shard and --" in said
    assert "found:    --shard 1/2 --" in said
    assert "in place of --shard" in said.partition("fix: ")[2]


def test_shards_are_merged_without_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["--merge", "shards", "--ray", "auto"], tmp_path, capsys)
    assert "Cannot combine --merge with other settings" in said
    assert "found:    --ray" in said
