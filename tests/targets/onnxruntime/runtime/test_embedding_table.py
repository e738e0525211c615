"""The table of embeddings gives what the embed graph gives, and errors as it does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from r1v_export import contract
from r1v_export.errors import BundleError, GraphError
from r1v_export.targets.onnxruntime.runtime.embedding_table import find_table
from r1v_export.targets.onnxruntime.runtime.run import run_graph

RNG = np.random.default_rng(0)


def find(built):
    return find_table(built.engine_folder / "embed.onnx", built.folder, built.spec.sizes)


def test_tokens_without_images_are_the_graphs_embeddings_to_the_bit_and_the_graph_is_not_opened(built):
    engine, sizes = built.open(), built.spec.sizes
    ids = RNG.integers(0, sizes.vocab, (3, 7))
    ids[0, 0], ids[1, 1], ids[2, 2] = built.spec.image_token_id, 0, sizes.vocab - 1
    none = np.zeros((0, sizes.hidden), np.float32)
    found = engine.embed(ids, none)
    assert "_embed" not in engine.__dict__
    (expected,) = run_graph(contract.EMBED, engine._embed, ids, none)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_number_that_is_no_tokens_is_left_to_the_graph(built, token):
    engine = built.open()
    ids, none = np.array([[1, token]]), np.zeros((0, built.spec.sizes.hidden), np.float32)
    assert not engine._table.holds(ids)
    if token > 0:
        with pytest.raises(GraphError, match="embed"):
            engine.embed(ids, none)


def test_no_tokens_are_left_to_the_graph(r1v):
    none = np.zeros((0, r1v.spec.sizes.hidden), np.float32)
    assert r1v.open().embed(np.zeros((1, 0), np.int64), none).shape == (1, 0, r1v.spec.sizes.hidden)


def test_a_file_that_was_cut_short_is_named(copy):
    table = find(copy)
    with (copy.graphs / "embed.data").open("r+b") as file:
        file.truncate(table.offset + 8)
    with pytest.raises(BundleError, match=r"embeddings cannot be read[\s\S]*embed\.data"):
        table.rows(np.array([[0]]))


def test_missing_weights_are_an_error(copy):
    (copy.graphs / "embed.data").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        find(copy)


def test_a_table_of_another_type_or_shape_is_left_to_the_graph(copy):
    path = copy.engine_folder / "embed.onnx"
    assert find(copy) is not None
    for change in ({"data_type": onnx.TensorProto.BFLOAT16}, {"dims": [1, 2, 3]}):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.external_data:
                tensor.data_type = change.get("data_type", tensor.data_type)
                del tensor.dims[:]
                tensor.dims.extend(change.get("dims", find(copy).shape if "dims" not in change else []))
        changed = copy.engine_folder / "changed.onnx"
        changed.write_bytes(model.SerializeToString())
        assert find_table(changed, copy.folder, copy.spec.sizes) is None


def test_half_precision_comes_out_as_float32(copy):
    table = find(copy)
    half = np.fromfile(copy.graphs / "embed.data", np.float32, np.prod(table.shape), offset=table.offset)
    half = half.astype(np.float16).reshape(table.shape)
    file = copy.folder / "half.data"
    half.tofile(file)
    found = type(table)(file, 0, table.shape, np.dtype(np.float16)).rows(np.array([[5, 1]]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], half[[5, 1]].astype(np.float32))
