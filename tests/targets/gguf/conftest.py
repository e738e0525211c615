"""Small models of both towers, written in every type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.recipe import Recipe, load, parse
from r1v_export.targets.gguf.write.files import write_gguf
from tests.quantization.calibration_cases import calibrated

_INT4 = load("int4-rtn").to_yaml().replace("language_model.*", '"*"').replace("group_size: 128", "group_size: 32")
RECIPES: dict[str, Recipe | None] = {
    "fp32": None,
    "fp16": None,
    "bf16": None,
    "int8-smoothquant": load("int8-smoothquant"),
    "int4-awq": load("int4-awq"),
    "int4-32": parse(_INT4),
    "uint4-32": parse(_INT4.replace("type: int4", "type: uint4")),
}
TYPES = {"Q8_0": {"model": "Q8_0", "mmproj": "Q8_0"}, "Q4_K_M": {"model": "Q4_K_M"}}
"""Blocks of the build file, of builds in float16; the rows of the models here are 256 and 512 values long."""
MODELS = ("6b", "300m")
"""RMSNorm with normalized queries and keys, and LayerNorm with biases."""


@dataclass(frozen=True)
class Written:
    """Two files and what they were made from."""

    folder: Path
    checkpoint: Checkpoint
    artifact: Artifact | None
    config: BuildConfig


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("gguf")
    layer_norm = {
        "vision_config.norm_type": "layer_norm",
        "vision_config.qk_normalization": False,
        "vision_config.qkv_bias": True,
    }
    sizes = {"preset": "nano", "vision_layers": 1, "language_layers": 2}
    return {
        name: Checkpoint.open(synthesize(root / name, overrides=overrides, **sizes))
        for name, overrides in zip(MODELS, ({}, layer_norm), strict=True)
    }


@pytest.fixture(scope="session")
def make(sources: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory):
    """Calibrates and writes, once for each model and precision."""
    made: dict[tuple[str, str], Written] = {}

    def of(model: str, name: str) -> Written:
        if (model, name) not in made:
            root, checkpoint, recipe = tmp_path_factory.mktemp(name), sources[model], RECIPES.get(name)
            artifact = None
            if recipe is not None:
                calibrated(checkpoint, recipe, root / "calibration", 1)
                artifact = Artifact.open(root / "calibration", checkpoint)
            precision = recipe.precision if recipe else "fp16" if name in TYPES else name
            config = BuildConfig(precision=precision, targets={"gguf": TYPES.get(name, {})})
            (root / "out").mkdir()
            write_gguf(checkpoint, artifact, config, root / "out")
            made[model, name] = Written(root / "out", checkpoint, artifact, config)
        return made[model, name]

    return of


@pytest.fixture(params=[(model, name) for model in MODELS for name in (*RECIPES, *TYPES)], ids=":".join)
def written(request: pytest.FixtureRequest, make) -> Written:
    return make(*request.param)
