"""One small model, calibrated by every recipe that the layout holds, in both layouts of tensor names."""

from __future__ import annotations

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.recipe import Recipe, load, parse
from r1v_export.targets.compressed_tensors.write.checkpoint import write_compressed
from tests.targets.hub_checkpoints import Written, sources_in, writer

_GPTQ = load("int4-gptq").to_yaml()
_INT4 = load("int4-rtn").to_yaml()
RECIPES: dict[str, Recipe] = {
    "fp8": load("fp8"),
    "fp8-tensor": load("fp8-tensor"),
    "fp8-rowwise": load("fp8-rowwise"),
    "fp8-kv": load("fp8-kv"),
    "int8-smoothquant": load("int8-smoothquant"),
    "int8-dynamic": parse(load("int8-smoothquant").to_yaml().replace("mode: static", "mode: dynamic")),
    "int4-32": parse(_INT4.replace("group_size: 128", "group_size: 32")),
    "int4-64": parse(_INT4.replace("group_size: 128", "group_size: 64")),
    "int4-128": load("int4-awq"),
    "uint4": parse(_INT4.replace("type: int4", "type: uint4")),
    "int4-no-order": parse(_GPTQ.replace("act_order: static", "act_order: none")),
    "int4-static-order": load("int4-gptq"),
    "int4-group-order": parse(_GPTQ.replace("act_order: static", "act_order: group")),
    "uint4-group-order": parse(
        _GPTQ.replace("act_order: static", "act_order: group").replace("int4", "uint4").replace("size: 128", "size: 32")
    ),
    "vision-group-order": parse(
        _GPTQ.replace("act_order: static", "act_order: group").replace("language_model.*", "vision_model.*")
    ),
    "mixed": load("mixed").model_copy(update={"rules": load("mixed").rules[:2]}),
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """The model in each layout of names."""
    return sources_in(tmp_path_factory.mktemp("compressed"))


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory):
    """Calibrates and writes, once for each checkpoint and recipe."""
    return writer(tmp_path_factory, RECIPES, write_compressed)


@pytest.fixture(params=RECIPES)
def chat(request: pytest.FixtureRequest, sources: dict[str, Checkpoint], make) -> Written:
    """Every recipe, where stored names are the canonical ones."""
    return make(sources["internvl_chat"], request.param)


@pytest.fixture(
    params=[("internvl", name) for name in ("fp8-tensor", "uint4", "int8-smoothquant", "vision-group-order")]
)
def native(request: pytest.FixtureRequest, sources: dict[str, Checkpoint], make) -> Written:
    """Where the layout cuts linears along their rows."""
    layout, recipe = request.param
    return make(sources[layout], recipe)
