"""Which targets hold groups in activation order, and what the others say before any work."""

from __future__ import annotations

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig
from r1v_export.errors import UsageError
from r1v_export.quantization.recipe import Scheme, load, parse, resolve
from r1v_export.targets.input_order import refuse_input_order
from r1v_export.targets.registry import get_target

TEXT = load("int4-gptq").to_yaml().replace("act_order: static", "act_order: group")
HOLDS = ("onnxruntime", "tensorrt", "tensorrt-rtx", "compressed-tensors")
REFUSES = ("hf-unified", "tensorrt-llm", "gguf")


def check(target: str) -> None:
    config = BuildConfig(precision="int4", targets=(target,))
    spec = Checkpoint.open().spec
    get_target(target).check_model(config, spec, resolve(parse(TEXT.replace("size: 128", "size: 32")), spec))


@pytest.mark.parametrize("target", HOLDS)
def test_what_holds_an_order_of_inputs_takes_it(target: str) -> None:
    check(target)


@pytest.mark.parametrize("target", REFUSES)
def test_what_holds_none_names_the_recipes_field_and_the_targets_that_hold_it(target: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(target)
    assert caught.value.found == "act_order: group"
    assert "act_order: static" in caught.value.fix
    assert "compressed-tensors, onnxruntime or tensorrt" in caught.value.fix


def test_an_imported_order_has_no_recipe_to_change() -> None:
    weights = {"type": "int4", "granularity": "group", "group_size": 32, "algorithm": "imported", "act_order": True}
    with pytest.raises(UsageError) as caught:
        refuse_input_order("GGUF", "mlp1.1", Scheme.model_validate({"weights": weights}))
    assert caught.value.found == "g_idx in an order of its own"
    assert "act_order" not in caught.value.fix


def test_columns_in_their_own_order_are_no_matter_of_it() -> None:
    for scheme in resolve(load("int4-gptq"), Checkpoint.open().spec).values():
        refuse_input_order("GGUF", "any linear", scheme)
