"""The graphs that encode images, in 8 bits, as they are written for a small model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from r1v_export.contract import IMAGE_GRAPHS, graph_contracts
from r1v_export.errors import GraphError
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget
from r1v_export.targets.onnxruntime.write.graphs import IMAGES_DATA
from tests.targets.conftest import Built


def written(bundle: Built) -> Path:
    out = bundle.engine_folder / "images" / "onnxruntime"
    out.mkdir(parents=True, exist_ok=True)
    OnnxRuntimeTarget().write_images(bundle.graphs, out, ("int8",))
    return out


def test_each_product_with_a_weight_is_one_of_integers(copy: Built) -> None:
    out = written(copy)
    for name in IMAGE_GRAPHS:
        graph = onnx.load(out / f"{name}.onnx", load_external_data=False).graph
        standard = onnx.load(copy.graphs / f"{name}.onnx", load_external_data=False).graph
        weights = {each.name for each in standard.initializer}
        products = [node for node in standard.node if node.op_type == "MatMul" and node.input[1] in weights]
        found = Counter(node.op_type for node in graph.node)
        assert found["MatMulIntegerToFloat"] == len(products) > 0
        assert found["MatMul"] == 0
        contract = graph_contracts(copy.spec.sizes)[name]
        assert [value.name for value in graph.input] == [tensor.name for tensor in contract.inputs]
        assert [value.name for value in graph.output] == [tensor.name for tensor in contract.outputs]
        rounded = [each for each in graph.initializer if each.name.endswith("/qweight")]
        places = [{entry.key: entry.value for entry in each.external_data} for each in rounded]
        assert {place["location"] for place in places} == {f"engines/onnxruntime/images/onnxruntime/{IMAGES_DATA}"}
        assert all(int(place["offset"]) % 4096 == 0 for place in places)


def test_images_are_those_of_the_engine_up_to_rounding(copy: Built) -> None:
    out, exact = written(copy), copy.open()
    engine = OnnxRuntimeTarget().open_images(out, copy.folder, copy.spec, "int8")
    side = copy.spec.sizes.tile_size
    pixels = np.random.default_rng(0).standard_normal((2, 3, side, side)).astype(np.float32)
    found, expected = engine.vision(pixels), exact.vision(pixels)
    assert 1e-4 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 3e-2
    blocks, exact_blocks = list(engine.vision_blocks(pixels)), list(exact.vision_blocks(pixels))
    assert len(blocks) == len(exact_blocks) == copy.spec.vision.num_layers
    error = np.linalg.norm(engine.projector(expected) - exact.projector(expected))
    assert 1e-4 < error / np.linalg.norm(exact.projector(expected)) < 3e-2


def test_the_weights_are_as_large_as_planned_and_the_same_every_time(copy: Built) -> None:
    from r1v_export.targets.onnxruntime.target import _int8_image_bytes

    first = (written(copy) / IMAGES_DATA).read_bytes()
    products = sum(
        int(np.prod(each.dims))
        for name in IMAGE_GRAPHS
        for each in onnx.load(written(copy) / f"{name}.onnx", load_external_data=False).graph.initializer
        if each.name.endswith("/qweight")
    )
    assert _int8_image_bytes(copy.spec) == products <= len(first)
    assert (written(copy) / IMAGES_DATA).read_bytes() == first


def test_a_graph_of_another_shape_is_refused_by_name(copy: Built) -> None:
    path = copy.graphs / "projector.onnx"
    model = onnx.load(path, load_external_data=False)
    weight = next(each for each in model.graph.initializer if each.external_data and len(each.dims) == 2)
    next(entry for entry in weight.external_data if entry.key == "location").value = "nothing.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError) as caught:
        written(copy)
    assert caught.value.where == "projector"
