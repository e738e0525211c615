"""`init`: what it writes is the default build, and so is what its comments offer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from r1v_export.build_file import load_config
from r1v_export.cli import main
from r1v_export.cli.init import commented_build_file
from r1v_export.config import BuildConfig
from r1v_export.targets import registry
from r1v_export.targets.entry_points import names


@pytest.fixture
def build_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    file = tmp_path / "build.yaml"
    assert main.run(["init", str(file)]) == 0
    assert f"--config {file}" in capsys.readouterr().out
    return file


def test_it_is_the_default_build_and_builds_as_it_is(
    build_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(build_file, {})
    assert config == registry.resolved(BuildConfig())
    assert main.run(["build", "--config", str(build_file), "--dry-run", "-o", str(tmp_path / "out")]) == 0
    assert "parity" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--recipe", "fp8"], ["--budget", "kl=1"], ["--precision", "int4"]], ids=" ".join)
def test_options_win_over_it(options: list[str], build_file: Path) -> None:
    assert main.run(["build", "--config", str(build_file), *options, "--print-config"]) == 0


def test_every_key_is_explained() -> None:
    lines = commented_build_file().splitlines()
    keys = [i for i, line in enumerate(lines) if re.match(r"[ #]*[a-z0-9_-]+:( |$)", line) and "# One" not in line]
    unexplained = [lines[i] for i in keys if not lines[i - 1].lstrip(" ").startswith("#")]
    assert unexplained == []
    for name in BuildConfig.model_fields:
        assert any(line.removeprefix("# ").startswith(f"{name}:") for line in lines), name


def test_all_targets_are_built_once_a_comment_sign_is_removed(tmp_path: Path) -> None:
    head, block = commented_build_file().split("\ntargets:\n")
    block, rest = block.split("\ndevice:")
    first = block.index("  # # ")  # of the first target that is not the default's
    uncommented = block[:first] + re.sub(r"(?m)^  # ", "  ", block[first:])
    file = tmp_path / "all.yaml"
    file.write_text(f"{head}\ntargets:\n{uncommented}\ndevice:{rest}", encoding="utf-8")
    assert load_config(file, {}) == registry.resolved(BuildConfig.model_validate({"targets": list(names())}))


def test_a_file_that_exists_stays(build_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = build_file.read_text()
    assert main.run(["init", str(build_file)]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert build_file.read_text() == before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["init", str(tmp_path / "none" / "build.yaml"), "--format", "json"]) == 2
    assert json.loads(capsys.readouterr().out)["found"] == "No such file or directory"


def test_a_folder_is_named_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["init", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "found:    a folder" in said
    assert f"name a file in it, such as {tmp_path / 'build.yaml'}" in said
    assert not any(tmp_path.iterdir())
