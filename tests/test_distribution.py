"""The wheel and the sdist hold all they should, and an installation says how an extra is added to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.runtime_environment import PACKAGE

ROOT = PACKAGE.parent
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
OF_GIT = (".ci/", ".git")
"""What a checkout alone needs."""


def tracked() -> list[Path]:
    """Files of the repository; of a folder that is linked, its files."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [Path(name) for name in listed.splitlines() if not name.startswith(OF_GIT)]
    inside = [path.relative_to(ROOT) for name in names if (ROOT / name).is_dir() for path in (ROOT / name).iterdir()]
    return [*(name for name in names if (ROOT / name).is_file()), *inside]


def built(kind: str, source: Path, out: Path) -> Path:
    """What setuptools makes of a folder."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind), out], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from a copy: setuptools leaves folders of its own."""
    copy = tmp_path_factory.mktemp("copy")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    return built("sdist", copy, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the sdist, as pip does it."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    return built("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_the_sdist_holds_every_file_of_the_repository(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    assert [str(name) for name in tracked() if name not in held] == []


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {str(name) for name in tracked() if name.parts[0] == PACKAGE.name}


def test_an_installed_wheel_says_how_an_extra_is_added(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True, capture_output=True, cwd=tmp_path)
    code = "from r1v_export.extras import install_command; print(install_command('build'))"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f'pip install "{wheel}[build]"'


def test_make_lets_processes_write_bytecode_whatever_its_caller_says() -> None:
    """Nothing is compiled when it is installed: every process of the tests would compile what it imports."""
    shows = "shown: ; @echo bytecode $$PYTHONDONTWRITEBYTECODE"
    command = ["make", "--no-print-directory", "--eval", shows, "shown"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["bytecode"]
