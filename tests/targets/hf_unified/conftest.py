"""One small model, calibrated by every recipe that the layout holds, in both layouts of tensor names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.recipe import Recipe, load, parse
from r1v_export.targets.hf_unified.write.checkpoint import write_unified
from tests.quantization.calibration_cases import calibrated

KV = load("fp8-tensor").model_copy(update={"kv_cache": "fp8"})
RECIPES: dict[str, Recipe] = {
    "fp8": load("fp8-tensor"),
    "fp8-kv": KV,
    "fp8-rowwise": load("fp8-rowwise"),
    "int4-awq": load("int4-awq"),
    "int4-rtn": load("int4-rtn"),
    "w4a8": parse(load("w4a8").to_yaml().replace("granularity: channel", "granularity: tensor")),
}
LAYOUTS = ("internvl_chat", "internvl")


@dataclass(frozen=True)
class Written:
    """A unified checkpoint and what it was made from."""

    folder: Path
    checkpoint: Checkpoint
    artifact: Artifact


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """The model in each layout of names."""
    root = tmp_path_factory.mktemp("unified")
    sizes = {"preset": "nano", "vision_layers": 1, "language_layers": 2, "shards": 2}
    return {layout: Checkpoint.open(synthesize(root / layout, layout=layout, **sizes)) for layout in LAYOUTS}


@pytest.fixture(params=LAYOUTS)
def source(request: pytest.FixtureRequest, sources: dict[str, Checkpoint]) -> Checkpoint:
    return sources[request.param]


@pytest.fixture
def chat(sources: dict[str, Checkpoint]) -> Checkpoint:
    """Where stored names are the canonical ones."""
    return sources["internvl_chat"]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory):
    """Calibrates and writes, once for each checkpoint and recipe."""
    made: dict[tuple[str, str], Written] = {}

    def of(checkpoint: Checkpoint, name: str) -> Written:
        key = (checkpoint.spec.layout, name)
        if key not in made:
            root = tmp_path_factory.mktemp(name)
            calibrated(checkpoint, RECIPES[name], root / "calibration", 1)
            artifact = Artifact.open(root / "calibration", checkpoint)
            (root / "out").mkdir()
            write_unified(checkpoint, artifact, root / "out")
            made[key] = Written(root / "out", checkpoint, artifact)
        return made[key]

    return of


@pytest.fixture(params=RECIPES)
def written(request: pytest.FixtureRequest, source: Checkpoint, make) -> Written:
    return make(source, request.param)
