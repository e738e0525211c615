"""A message of a few fields against the package onnx: what it reads, and that it loses nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from r1v_export.targets.onnxruntime import graph_message
from r1v_export.targets.onnxruntime.graph_message import Model, Tensor


def model() -> onnx.ModelProto:
    """One of everything that is read, among much that is not."""
    weight = TensorProto(name="weight", data_type=TensorProto.INT4, dims=[2, 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "graphs/decoder.data"), ("offset", "64"), ("length", "4")):
        weight.external_data.add(key=key, value=value)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "middle", "y")]
    nodes = [
        helper.make_node("Gelu", ["x"], ["middle"], approximate="tanh"),
        helper.make_node("Gemm", ["middle", "weight"], ["y"], alpha=0.5, transB=1),
    ]
    graph = helper.make_graph(nodes, "graph", values[:1], values[2:], [weight], value_info=values[1:2])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], producer_name="test")
    made.metadata_props.add(key="r1v.int4_inputs", value="int8")
    return made


def test_it_reads_what_onnx_reads():
    expected = model()
    read = Model(expected.SerializeToString())
    assert [entry.value for entry in read.graph.initializer[0].external_data] == ["graphs/decoder.data", "64", "4"]
    assert read.graph.initializer[0].data_type == TensorProto.INT4
    assert read.graph.initializer[0].dims == (2, 4)
    assert [value.name for value in read.graph.value_info] == ["middle"]
    assert [value.name for value in read.graph.output] == ["y"]
    assert [node.input for node in read.graph.node] == [["x"], ["middle", "weight"]]
    assert {entry.key: entry.value for entry in read.metadata_props} == {"r1v.int4_inputs": "int8"}


def test_a_change_leaves_the_rest_of_the_file_as_it_was():
    expected = model()
    changed = Model(expected.SerializeToString())
    changed.graph.initializer[0].external_data[0].value = "blobs/0"
    changed.graph.add_output(changed.graph.value_info[0])
    changed.graph.set_nodes(reversed(changed.graph.node))
    expected.graph.initializer[0].external_data[0].value = "blobs/0"
    expected.graph.output.append(expected.graph.value_info[0])
    expected.graph.node.reverse()
    assert onnx.load_model_from_string(changed.SerializeToString()) == expected


@pytest.mark.parametrize("name", ["FLOAT8E4M3FN", "INT8", "FLOAT16", "UINT4", "INT4"])
def test_its_numbers_of_element_types_are_those_of_onnx(name):
    assert getattr(graph_message, name) == TensorProto.DataType.Value(name)


@pytest.mark.parametrize("packed", [b"\x0a\x03\x02\xac\x02", b"\x08\x02\x08\xac\x02"], ids=["packed", "one by one"])
def test_numbers_are_read_as_either_form_has_them(packed):
    expected = TensorProto.FromString(packed)
    assert Tensor(packed).dims == tuple(expected.dims) == (2, 300)


@pytest.mark.parametrize(
    "content", [b"\x40\x05", b"\x09\0\0\0\0\0\0\0\x01", b"\x68\x01"], ids=["name", "dims", "external_data"]
)
def test_a_field_that_is_written_as_another_type_is_unknown_and_kept(content):
    expected, found = TensorProto.FromString(content), Tensor(content)
    assert (found.name, found.dims, len(found.external_data)) == ("", (), 0)
    assert (expected.name, len(expected.dims), len(expected.external_data)) == ("", 0, 0)
    assert found.SerializeToString() == expected.SerializeToString() == content


def test_what_is_cut_off_or_garbled_is_an_error_or_read_as_onnx_reads_it():
    content = model().SerializeToString()
    random = np.random.default_rng(0)
    damaged = [content[:end] for end in range(1, len(content))]
    for _ in range(500):
        changed = bytearray(content)
        changed[random.integers(len(content))] = random.integers(256)
        damaged.append(bytes(changed))
    refused = 0
    for each in damaged:
        try:
            names = [weight.name for weight in Model(each).graph.initializer]
        except ValueError:
            refused += 1
            continue
        try:
            expected = onnx.load_model_from_string(each)
        except DecodeError:  # in a part that is not read here
            continue
        assert names == [weight.name for weight in expected.graph.initializer]
    assert refused > len(content) // 2
