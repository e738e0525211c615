"""What is kept of a graph between sessions, and that what is kept is never another graph's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from r1v_export import contract, user_cache
from r1v_export.errors import BundleError
from r1v_export.manifest import MANIFEST
from r1v_export.opening import Begun
from r1v_export.targets.onnxruntime.runtime import optimized_graphs, session
from r1v_export.targets.onnxruntime.session_options import INT4_INPUTS, PARALLEL_PREPACK
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget
from r1v_export.user_cache import cache_folder
from tests.targets.child_processes import SPAWN, kill_at, run_all, start
from tests.targets.onnxruntime.runtime.opened_graphs import (
    DEPTH,
    open_at_once,
    open_on_a_full_disk,
    open_until_killed,
    result,
)
from tests.tiny_models import tiny_spec

COLUMNS, GROUP = 384, 32


class Opened:
    """The graphs that sessions were made of."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    def operators(self) -> list[str]:
        """Of the latest, in its order."""
        return [node.op_type for node in onnx.load_model_from_string(self.contents[-1]).graph.node]


@pytest.fixture
def opened(monkeypatch, tmp_path) -> Opened:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(optimized_graphs, "LEAST_BYTES", 1)
    found, real = Opened(), session.ort.InferenceSession

    def create(content: bytes, *arguments: object, **options: object):
        found.contents.append(content)
        return real(content, *arguments, **options)

    monkeypatch.setattr(session.ort, "InferenceSession", create)
    return found


def write_graph(bundle: Path, seed: int = 0) -> Path:
    """x -> MatMul with 4-bit weights -> MatMul with float32 weights, both in `graphs/decoder.data`."""
    (bundle / "graphs").mkdir(parents=True, exist_ok=True)
    random, data, initializers = np.random.default_rng(seed), bytearray(), []
    parts = (
        ("weight", TensorProto.INT4, (DEPTH, COLUMNS), random.integers(0, 256, DEPTH * COLUMNS // 2, np.uint8)),
        ("scale", TensorProto.FLOAT, (DEPTH // GROUP, COLUMNS), random.random(DEPTH // GROUP * COLUMNS, np.float32)),
        ("head", TensorProto.FLOAT, (COLUMNS, COLUMNS), random.random(COLUMNS * COLUMNS, np.float32)),
    )
    for name, kind, dims, values in parts:
        data += bytes(-len(data) % 4096)
        tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
        place = {"location": "graphs/decoder.data", "offset": str(len(data)), "length": str(values.nbytes)}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        initializers.append(tensor)
        data += values.tobytes()
    (bundle / "graphs" / "decoder.data").write_bytes(data)
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["dequantized"], axis=0, block_size=GROUP),
        helper.make_node("MatMul", ["x", "dequantized"], ["middle"]),
        helper.make_node("MatMul", ["middle", "head"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", DEPTH]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", COLUMNS]),
    ]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    model.metadata_props.add(key=INT4_INPUTS, value="int8")
    path = bundle / "decoder.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def entries() -> list[Path]:
    folder = cache_folder("onnxruntime")
    assert folder is not None
    return sorted(folder.iterdir())


def test_the_second_session_opens_what_the_first_one_optimized_and_gives_the_same_numbers(opened, tmp_path):
    path = write_graph(tmp_path / "bundle")
    expected = result(path, keep=False)
    np.testing.assert_array_equal(result(path), expected)
    assert "DequantizeLinear" in opened.operators()
    np.testing.assert_array_equal(result(path), expected)
    assert sorted(opened.operators()) == ["MatMul", "MatMulNBits"]
    assert len(opened.contents) == 3


def test_the_largest_weights_are_packed_first_while_little_else_is_there(opened, tmp_path):
    path = write_graph(tmp_path / "bundle")
    result(path)
    result(path)
    assert opened.operators() == ["MatMul", "MatMulNBits"]  # the head, and what it multiplies


def test_weights_that_stay_as_they_are_are_not_kept_again(opened, tmp_path):
    path = write_graph(tmp_path / "bundle")
    result(path)
    (entry,) = entries()
    size_bytes = sum(file.stat().st_size for file in entry.iterdir())
    assert DEPTH * COLUMNS // 2 < size_bytes < DEPTH * COLUMNS // 2 * 1.5 < COLUMNS * COLUMNS * 4


@pytest.mark.parametrize("what", ["weights", "graph", "processor"])
def test_what_was_kept_of_something_else_is_not_used_and_goes(what, opened, tmp_path, monkeypatch):
    path = write_graph(tmp_path / "bundle")
    result(path)
    (before,) = entries()
    if what == "weights":
        write_graph(tmp_path / "bundle", seed=1)
    elif what == "graph":
        model = onnx.load_model_from_string(opened.contents[0])
        model.metadata_props[0].value = "exact"
        path.write_bytes(model.SerializeToString())
    else:
        monkeypatch.setattr(optimized_graphs, "_processor", lambda: "another one")
    np.testing.assert_array_equal(result(path), result(path, keep=False))
    (after,) = entries()
    assert after != before


@pytest.mark.parametrize("file", ["graph.onnx", "weights.data"])
@pytest.mark.parametrize("left", ["half", "all but a byte", "an empty file", "no file"])
def test_a_damaged_entry_is_made_anew(file, left, opened, tmp_path):
    path = write_graph(tmp_path / "bundle")
    expected = result(path)
    (entry,) = entries()
    size_bytes = (entry / file).stat().st_size
    if left == "no file":
        (entry / file).unlink()
    else:
        os.truncate(entry / file, {"half": size_bytes // 2, "all but a byte": size_bytes - 1, "an empty file": 0}[left])
    np.testing.assert_array_equal(result(path), expected)
    assert "DequantizeLinear" in opened.operators()
    np.testing.assert_array_equal(result(path), expected)
    assert "MatMulNBits" in opened.operators()


def test_two_processes_at_once_end_with_one_whole_entry(opened, tmp_path):
    path = write_graph(tmp_path / "bundle")
    expected, both = result(path, keep=False), SPAWN.Barrier(2)
    run_all(*(start(open_at_once, path, expected, both) for _ in range(2)))
    (entry,) = entries()
    assert not entry.name.startswith(".")
    np.testing.assert_array_equal(result(path), expected)
    assert "MatMulNBits" in opened.operators()


def test_what_a_killed_process_has_saved_is_not_used(opened, tmp_path):
    path = write_graph(tmp_path / "bundle")
    expected, reached = result(path, keep=False), SPAWN.Event()
    kill_at(reached, start(open_until_killed, path, expected, reached))
    (left,) = entries()
    assert (left.name[0], (left / "weights.data").is_file()) == (".", True)
    np.testing.assert_array_equal(result(path), expected)
    assert "DequantizeLinear" in opened.operators()
    np.testing.assert_array_equal(result(path), expected)
    assert "MatMulNBits" in opened.operators()


@pytest.mark.parametrize("limit_bytes", [0, 4096, COLUMNS * COLUMNS * 4])
def test_a_disk_that_gets_full_is_no_error(limit_bytes, opened, tmp_path):
    """Nothing fits, the graph alone, or a part of the weights."""
    path = write_graph(tmp_path / "bundle")
    run_all(start(open_on_a_full_disk, path, result(path, keep=False), limit_bytes))
    assert entries() == []


def test_entries_of_engines_that_are_gone_are_removed(opened, tmp_path):
    gone, here = write_graph(tmp_path / "gone"), write_graph(tmp_path / "here")
    result(gone)
    gone.unlink()
    result(here)
    assert [(entry / "source").read_text(encoding="utf-8") for entry in entries()] == [str(here)]


def test_a_cache_that_cannot_be_written_is_no_error(opened, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = write_graph(tmp_path / "bundle")
    np.testing.assert_array_equal(result(path), result(path, keep=False))


def test_what_takes_much_of_the_disk_is_reported_and_can_be_switched_off(opened, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(user_cache, "REPORTED_FROM_BYTES", 1000)
    path = write_graph(tmp_path / "bundle")
    result(path)
    (entry,) = entries()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"kB in {entry}; R1V_EXPORT_GRAPH_CACHE=off keeps nothing" in record.getMessage()
    monkeypatch.setenv("R1V_EXPORT_GRAPH_CACHE", "off")
    result(path)
    assert "DequantizeLinear" in opened.operators()


def test_a_user_without_a_home_has_no_cache(opened, tmp_path, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(optimized_graphs.Path, "home", homeless)
    path = write_graph(tmp_path / "bundle")
    np.testing.assert_array_equal(result(path), result(path, keep=False))


def test_nothing_is_kept_where_the_disk_is_nearly_full_or_the_weights_are_few(opened, tmp_path, monkeypatch):
    path = write_graph(tmp_path / "bundle")
    usage = user_cache.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(user_cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        result(path)
    assert entries() == []
    monkeypatch.setattr(optimized_graphs, "LEAST_BYTES", DEPTH * COLUMNS)
    result(path)
    assert entries() == []


def test_only_finished_bundles_are_kept(tmp_path):
    """A build's gate opens an engine once, at a place that it leaves."""
    engine = tmp_path / "engines" / "onnxruntime"
    engine.mkdir(parents=True)
    for name in contract.GRAPHS:
        (engine / f"{name}.onnx").touch()
    assert not OnnxRuntimeTarget().open(engine, tiny_spec(), "cpu").keep
    (tmp_path / MANIFEST).touch()
    assert OnnxRuntimeTarget().open(engine, tiny_spec(), "cpu").keep


def prepacks_by_all_threads(path: Path, begun: Begun | None, keep: bool = False) -> bool:
    made = session.open_session(path, path.parent, "cpu", 1, keep=keep, begun=begun)
    return made.get_session_options().get_session_config_entry(PARALLEL_PREPACK) == "1"


def test_one_thread_prepares_few_weights_while_another_one_works(tmp_path, monkeypatch) -> None:
    path = write_graph(tmp_path / "bundle")
    assert prepacks_by_all_threads(path, begun=None)
    assert not prepacks_by_all_threads(path, begun=lambda: None)
    monkeypatch.setattr(session, "MOST_BY_ONE_THREAD_BYTES", 1000)
    assert prepacks_by_all_threads(path, begun=lambda: None)


def test_by_how_many_threads_weights_are_prepared_does_not_change_what_is_kept(opened: Opened, tmp_path) -> None:
    path = write_graph(tmp_path / "bundle")
    assert prepacks_by_all_threads(path, begun=None, keep=True)
    kept = entries()
    assert not prepacks_by_all_threads(path, begun=lambda: None, keep=True)
    assert entries() == kept
    assert sorted(opened.operators()) == ["MatMul", "MatMulNBits"]


def test_a_session_has_begun_when_its_graph_is_read(tmp_path: Path) -> None:
    path, begun = write_graph(tmp_path / "bundle"), list[str]()
    session.open_session(path, path.parent, "cpu", 1, begun=lambda: begun.append("here"))
    assert begun == ["here"]
    model = onnx.load_model_from_string(path.read_bytes())
    model.graph.node[0].op_type = "NoSuchOperator"  # what ONNX Runtime refuses as it reads a graph
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="ONNX Runtime refuses"):
        session.open_session(path, path.parent, "cpu", 1, begun=lambda: pytest.fail("it was not read"))
