"""One small model, calibrated by every recipe that the layout holds, in both layouts of tensor names."""

from __future__ import annotations

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.recipe import Recipe, load, parse
from r1v_export.targets.hf_unified.write.checkpoint import write_unified
from tests.targets.hub_checkpoints import LAYOUTS, Written, sources_in, writer

KV = load("fp8-tensor").model_copy(update={"kv_cache": "fp8"})
RECIPES: dict[str, Recipe] = {
    "fp8": load("fp8-tensor"),
    "fp8-kv": KV,
    "fp8-rowwise": load("fp8-rowwise"),
    "int4-awq": load("int4-awq"),
    "int4-rtn": load("int4-rtn"),
    "w4a8": parse(load("w4a8").to_yaml().replace("granularity: channel", "granularity: tensor")),
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """The model in each layout of names."""
    return sources_in(tmp_path_factory.mktemp("unified"))


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
    return writer(tmp_path_factory, RECIPES, write_unified)


@pytest.fixture(params=RECIPES)
def written(request: pytest.FixtureRequest, source: Checkpoint, make) -> Written:
    return make(source, request.param)
