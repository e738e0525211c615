"""Weight files and index that do not belong together, each with its own message."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.tensor_store import INDEX_NAME, open_tensors
from tests.checkpoint.conftest import edit_json, edit_tensors, refusal

SECOND = "model-00002-of-00003.safetensors"


def shard_of(folder, name: str) -> str:
    return json.loads((folder / INDEX_NAME).read_text())["weight_map"][name]


def a_tensor_in(folder, shard: str) -> str:
    return next(iter(load_file(folder / shard)))


def test_shards_hold_what_one_file_holds(tiny, sharded):
    one, several = Checkpoint.open(tiny), Checkpoint.open(sharded)
    assert len(several.files()) == 4
    assert all(torch.equal(one.read(name), several.read(name)) for name in one.tensors)


def test_a_single_file_may_have_any_name(tiny):
    (tiny / "model.safetensors").rename(tiny / "weights.safetensors")
    assert Checkpoint.open(tiny).files() == [tiny / "weights.safetensors"]


def test_a_truncated_shard_is_named(sharded):
    path = sharded / SECOND
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size // 2)
    error = refusal(sharded)
    assert "is truncated" in error.what
    assert SECOND in str(error.where)
    assert (error.expected, error.found) == (f"{size} bytes", f"{size // 2} bytes")


def test_a_missing_shard_is_named(sharded):
    (sharded / SECOND).unlink()
    error = refusal(sharded)
    assert "shards that are not there" in error.what
    assert error.found == SECOND
    assert "download" in error.fix


def test_a_shard_that_the_index_does_not_name_is_named(sharded):
    save_file({"x": torch.ones(1)}, sharded / "stray.safetensors")
    error = refusal(sharded)
    assert "that the index does not name" in error.what
    assert error.found == "stray.safetensors"


def test_shards_without_an_index_are_refused(sharded):
    (sharded / INDEX_NAME).unlink()
    error = refusal(sharded)
    assert "has no index" in error.what
    assert error.expected == INDEX_NAME
    assert SECOND in error.found


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_an_index_that_is_not_json_is_refused(sharded, content):
    (sharded / INDEX_NAME).write_bytes(content)
    error = refusal(sharded)
    assert "The weight index cannot be used" in error.what
    assert INDEX_NAME in str(error.where)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_an_index_without_a_weight_map_is_refused(sharded, content):
    (sharded / INDEX_NAME).write_text(content)
    assert "no usable weight map" in refusal(sharded).what


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "model.bin", "..", ""],
)
def test_an_index_cannot_name_files_outside_the_folder(sharded, shard):
    edit_json(sharded / INDEX_NAME, lambda index: index["weight_map"].update({"mlp1.0.weight": shard}))
    error = refusal(sharded)
    assert "outside the checkpoint's folder" in error.what
    assert error.found == shard


def test_a_tensor_in_two_shards_is_named(sharded):
    name = a_tensor_in(sharded, SECOND)
    copy = load_file(sharded / SECOND)[name]
    edit_tensors(sharded / "model-00001-of-00003.safetensors", lambda tensors: tensors.update({name: copy}))
    error = refusal(sharded)
    assert "more than one shard" in error.what
    assert error.found == f"{name} in model-00001-of-00003.safetensors and {SECOND}"


def test_a_tensor_that_its_shard_does_not_hold_is_named(sharded):
    name = a_tensor_in(sharded, SECOND)
    edit_tensors(sharded / SECOND, lambda tensors: tensors.pop(name))
    error = refusal(sharded)
    assert "their shards do not hold" in error.what
    assert error.found == f"{name} in {SECOND}"


def test_a_tensor_that_the_index_does_not_name_is_named(sharded):
    name = a_tensor_in(sharded, SECOND)
    edit_json(sharded / INDEX_NAME, lambda index: index["weight_map"].pop(name) and None)
    error = refusal(sharded)
    assert "that the index does not name" in error.what
    assert error.found == f"{name} in {SECOND}"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickled_weights_are_refused_with_the_conversion(tiny, name):
    (tiny / "model.safetensors").rename(tiny / name)
    error = refusal(tiny)
    assert "pickle" in error.what
    assert name in error.found
    assert "safe_serialization=True" in error.fix


def test_a_folder_without_weights_is_refused(tiny):
    (tiny / "model.safetensors").unlink()
    error = refusal(tiny)
    assert "no weights" in error.what
    assert "model.safetensors" in error.expected


def test_many_problems_are_counted_and_five_are_shown(sharded):
    kept = a_tensor_in(sharded, SECOND)
    removed = len(load_file(sharded / SECOND)) - 1
    edit_tensors(sharded / SECOND, lambda tensors: [tensors.pop(name) for name in list(tensors) if name != kept])
    assert f"and {removed - 5} more" in refusal(sharded).found


def test_opening_reads_headers_only(sharded, monkeypatch):
    """Whatever the weights' bytes are, they are not checked."""
    import mmap

    monkeypatch.setattr(mmap, "mmap", lambda *args, **kwargs: pytest.fail("a weight was read"))
    assert len(open_tensors(sharded)) == len(Checkpoint.open(sharded).tensors)
