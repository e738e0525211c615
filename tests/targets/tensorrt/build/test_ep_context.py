"""The model by which ONNX Runtime runs a plan: it names the plan next to it, and ONNX Runtime knows its operator."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest

from r1v_export.targets.tensorrt.build.ep_context import CONTEXT
from r1v_export.targets.tensorrt.runtime.loading import PLANS


@pytest.mark.parametrize("name", PLANS)
def test_it_has_the_plans_inputs_and_outputs_and_refers_to_it_by_its_bare_name(fp32, name) -> None:
    model = onnx.load(fp32.engine_folder / f"{name}{CONTEXT}")
    info = fp32.info(name)
    assert [value.name for value in model.graph.input] == [binding.name for binding in info.inputs]
    assert [value.name for value in model.graph.output] == [binding.name for binding in info.outputs]
    (node,) = model.graph.node
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert (fp32.engine_folder / attributes["ep_cache_context"].decode()).is_file()
    assert b"/" not in attributes["ep_cache_context"]
    assert attributes["embed_mode"] == 0
    assert attributes["ep_sdk_version"].decode() == info.version
    assert attributes["hardware_architecture"].decode() == "89"


def test_onnx_runtime_knows_the_operator_and_lacks_only_its_provider(fp32) -> None:
    with pytest.raises(Exception, match=r"EPContext") as caught:
        ort.InferenceSession(fp32.engine_folder / f"vision{CONTEXT}", providers=["CPUExecutionProvider"])
    assert "NOT_IMPLEMENTED" in str(caught.value) or "execution provider" in str(caught.value)
