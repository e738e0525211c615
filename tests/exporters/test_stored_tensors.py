"""A graph's bytes: what onnx itself writes passes, and each way to lead a reader astray is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from r1v_export.errors import GraphError
from r1v_export.exporters.stored_tensors import check_stored_tensors
from r1v_export.manifest import FileEntry

WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4)


def external(name: str = "w", **entries: str) -> TensorProto:
    tensor = numpy_helper.from_array(WEIGHTS, name)
    del tensor.external_data[:]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "g.data", "offset": "16", "length": "48"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph_of(*tensors: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])
    return helper.make_graph([helper.make_node("Identity", ["w"], ["y"]), *nodes], "g", [], [output], list(tensors))


def check(graph: onnx.GraphProto, folder: Path, name: str = "graphs/g.onnx", **sizes: int) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    files = {"graphs/g.data": 64, name: path.stat().st_size, **sizes}
    check_stored_tensors(folder, name, {file: FileEntry(sha256="0" * 64, size=size) for file, size in files.items()})


def test_what_onnx_itself_stores_outside_passes(tmp_path: Path) -> None:
    model = helper.make_model(graph_of(numpy_helper.from_array(WEIGHTS, "w")))
    path = tmp_path / "graphs" / "g.onnx"
    path.parent.mkdir()
    onnx.save_model(model, path, save_as_external_data=True, location="g.data", size_threshold=0)
    sizes = {name: (tmp_path / name).stat().st_size for name in ("graphs/g.onnx", "graphs/g.data")}
    files = {name: FileEntry(sha256="0" * 64, size=size) for name, size in sizes.items()}
    check_stored_tensors(tmp_path, "graphs/g.onnx", files)


@pytest.mark.parametrize(
    "tensor", [external(), external(offset="0"), numpy_helper.from_array(WEIGHTS, "w")], ids=["end", "start", "inline"]
)
def test_tensors_within_their_files_pass(tensor: TensorProto, tmp_path: Path) -> None:
    check(graph_of(tensor), tmp_path)


def test_an_engine_s_weights_may_be_relative_to_the_bundle(tmp_path: Path) -> None:
    check(graph_of(external(location="graphs/g.data")), tmp_path, "engines/onnxruntime/g.onnx")
    with pytest.raises(GraphError, match="outside its bundle"):
        check(graph_of(external(location="graphs/g.data")), tmp_path)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"location": "../../outside.data"}, "outside its bundle"),
        ({"location": "../graphs/g.data"}, "outside its bundle"),
        ({"location": "/etc/passwd"}, "outside its bundle"),
        ({"location": "..\\g.data"}, "outside its bundle"),
        ({"location": "other.data"}, "outside its bundle"),
        ({"location": ""}, "outside its bundle"),
        ({"location": "g.data\0"}, "outside its bundle"),
        ({"offset": "17"}, "ends beyond its file"),
        ({"offset": "9" * 18}, "ends beyond its file"),
        ({"offset": "-1"}, "no number"),
        ({"offset": "9" * 5000}, "no number"),
        ({"length": "1e2"}, "no number"),
        ({"length": "44"}, "not of its shape's size"),
        ({"length": "52"}, "not of its shape's size"),
    ],
    ids=str,
)
def test_a_place_that_is_not_the_tensor_s_is_refused(entries: dict[str, str], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=complaint) as caught:
        check(graph_of(external(**entries)), tmp_path)
    assert "g.onnx: w" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_inline_bytes_are_as_many_as_the_shape_needs(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(WEIGHTS, "w")
    tensor.dims[0] = 2**62
    with pytest.raises(GraphError, match="not of its shape's size"):
        check(graph_of(tensor), tmp_path)


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FNUZ", "FLOAT8E8M0", "FLOAT4E2M1", "INT2", "UINT2", "COMPLEX128"])
def test_every_numeric_type_of_onnx_has_its_size(kind: str, tmp_path: Path) -> None:
    data_type = TensorProto.DataType.Value(kind)
    values = np.zeros(12, helper.tensor_dtype_to_np_dtype(data_type))
    tensor = numpy_helper.from_array(values, "w")
    assert tensor.data_type == data_type
    check(graph_of(tensor), tmp_path)


def test_a_shape_with_a_negative_size_is_refused(tmp_path: Path) -> None:
    tensor = external()
    tensor.dims[:] = [-3, -4]
    with pytest.raises(GraphError, match="unknown type or shape"):
        check(graph_of(tensor), tmp_path)


def test_tensors_in_attributes_and_inner_graphs_are_checked_too(tmp_path: Path) -> None:
    bad = external(location="/etc/passwd")
    constant = helper.make_node("Constant", [], ["c"], value=bad)
    branch = helper.make_graph([constant], "branch", [], [])
    hidden = [
        graph_of(nodes=(constant,)),
        graph_of(nodes=(helper.make_node("If", ["w"], ["z"], then_branch=branch, else_branch=branch),)),
        graph_of(nodes=(helper.make_node("Loop", ["w"], ["z"], body=graph_of(bad)),)),
    ]
    for graph in hidden:
        with pytest.raises(GraphError, match="outside its bundle"):
            check(graph, tmp_path)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(GraphError, match="cannot be read"):
        check_stored_tensors(tmp_path, "g.onnx", {})
