from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from r1v_export.contract import GRAPHS, PROJECTOR, VISION
from r1v_export.errors import CapabilityError, GraphError
from r1v_export.targets.openvino.engine_file import ENGINE_FILE, read_engine_file


def test_weights_are_not_copied(of_r1v):
    assert {path.name for path in of_r1v.engine_folder.iterdir()} == {ENGINE_FILE, *(f"{name}.onnx" for name in GRAPHS)}
    engine_bytes = sum(path.stat().st_size for path in of_r1v.engine_folder.glob("*.onnx"))
    weight_bytes = sum(path.stat().st_size for path in of_r1v.built.graphs.glob("*.data"))
    assert engine_bytes < weight_bytes / 3


@pytest.mark.parametrize("name", GRAPHS)
def test_every_weight_of_a_graph_is_found_where_the_engine_says(of_r1v, name):
    standard = onnx.load(of_r1v.built.graphs / f"{name}.onnx")
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in standard.graph.initializer}
    weights = read_engine_file(of_r1v.engine_folder).weights[name]
    graph = onnx.load(of_r1v.engine_folder / f"{name}.onnx").graph
    assert weights.keys() <= {value.name for value in graph.input}
    for tensor, weight in weights.items():
        content = (of_r1v.built.folder / weight.file).read_bytes()[weight.offset :][: weight.size_bytes]
        np.testing.assert_array_equal(np.frombuffer(content, np.float32).reshape(weight.shape), arrays[tensor])


def test_building_again_gives_the_same_bytes(of_r1v, tmp_path):
    of_r1v.build_engine(tmp_path)
    for path in of_r1v.engine_folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_options_of_the_build_lie_with_the_engine(own):
    own.build_engine(own.engine_folder, matmul="bfloat16", int4_inputs="int8")
    assert json.loads((own.engine_folder / ENGINE_FILE).read_text())["options"] == {
        "matmul": "bfloat16",
        "int4_inputs": "int8",
    }


@pytest.mark.parametrize(
    ("of_weights", "of_inputs"), [([128, 128], 128), ([128, 64], 64), ([256], 128), ([0], 128), ([96], 32), ([16], 32)]
)
def test_inputs_share_a_scale_in_groups_that_divide_those_of_the_weights(own, monkeypatch, of_weights, of_inputs):
    path = own.built.graphs / f"{PROJECTOR}.onnx"
    model = onnx.load(path, load_external_data=False)
    for number, size in enumerate(of_weights):
        weight = np.zeros((size or 64, 8), np.int8)
        model.graph.initializer.extend(
            [
                onnx.helper.make_tensor(f"weight{number}", onnx.TensorProto.INT4, weight.shape, weight.ravel()),
                onnx.helper.make_tensor(f"scale{number}", onnx.TensorProto.FLOAT, (1, 8), np.ones(8)),
            ]
        )
        inputs = [f"weight{number}", f"scale{number}"]
        model.graph.node.append(
            onnx.helper.make_node("DequantizeLinear", inputs, [f"float{number}"], axis=0, block_size=size)
        )
        model.graph.node.append(onnx.helper.make_node("Identity", [f"float{number}"], [f"used{number}"]))
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(f"used{number}", onnx.TensorProto.FLOAT, weight.shape)
        )
    path.write_bytes(model.SerializeToString())
    own.build_engine(own.engine_folder)
    assert read_engine_file(own.engine_folder).input_groups == {PROJECTOR: of_inputs}


def test_a_graph_of_another_shape_is_refused_by_name(own):
    path = own.built.graphs / "decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "TensorScatter").op_type = "ScatterND"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="TensorScatter") as error:
        own.build_engine(own.engine_folder)
    assert error.value.where == "decoder"


def test_a_graph_in_another_type_is_refused_with_the_precision_to_take(own):
    path = own.built.graphs / f"{VISION}.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CapabilityError, match="--precision fp32") as error:
        own.build_engine(own.engine_folder)
    assert error.value.found == "bfloat16"
