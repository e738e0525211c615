"""One small model, calibrated by recipes and written by a target as a Hugging Face folder, each once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.recipe import Recipe
from tests.quantization.calibration_cases import calibrated

LAYOUTS = ("internvl_chat", "internvl")


@dataclass(frozen=True)
class Written:
    """A checkpoint and what it was made from."""

    folder: Path
    checkpoint: Checkpoint
    artifact: Artifact


def sources_in(root: Path) -> dict[str, Checkpoint]:
    """The model in each layout of names."""
    sizes = {"preset": "nano", "vision_layers": 1, "language_layers": 2, "shards": 2}
    return {layout: Checkpoint.open(synthesize(root / layout, layout=layout, **sizes)) for layout in LAYOUTS}


def writer(
    tmp_path_factory: pytest.TempPathFactory,
    recipes: Mapping[str, Recipe],
    write: Callable[[Checkpoint, Artifact, Path], None],
) -> Callable[[Checkpoint, str], Written]:
    """Calibrates and writes, once for each checkpoint and recipe."""
    made: dict[tuple[str, str], Written] = {}

    def of(checkpoint: Checkpoint, name: str) -> Written:
        key = (checkpoint.spec.layout, name)
        if key not in made:
            root = tmp_path_factory.mktemp(name)
            calibrated(checkpoint, recipes[name], root / "calibration", 1)
            artifact = Artifact.open(root / "calibration", checkpoint)
            (root / "out").mkdir()
            write(checkpoint, artifact, root / "out")
            made[key] = Written(root / "out", checkpoint, artifact)
        return made[key]

    return of
