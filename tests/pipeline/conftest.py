"""A tiny checkpoint, and a bundle of it without the parity gate: quick to build again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.pipeline.build import build


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with one ViT block and one decoder layer."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-model"
    return synthesize(folder, preset="nano", vision_layers=1, language_layers=1)


@pytest.fixture(scope="session")
def tiny_config(tiny_model: Path) -> BuildConfig:
    return BuildConfig(model=str(tiny_model), parity=ParityConfig(enabled=False))


@pytest.fixture(scope="session")
def tiny_built(tiny_config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle. Not to be written to."""
    return build(tiny_config, tmp_path_factory.mktemp("bundles") / "tiny").out


@pytest.fixture
def tiny_bundle(tiny_built: Path, tmp_path: Path) -> Path:
    """A copy of its bundle, to be changed."""
    return Path(shutil.copytree(tiny_built, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Path -> content of every file below a folder."""

    def read(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
