"""One safetensors file, held against the format's own library."""

from __future__ import annotations

import json
import mmap
import os
import random
import re

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from r1v_export.checkpoint.tensor_file import DTYPES, read_header
from r1v_export.errors import CheckpointError


@pytest.fixture
def path(tmp_path):
    tensors = {"a": torch.arange(6).view(2, 3), "b.weight": torch.randn(5, 1).bfloat16(), "c": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def write_raw(path, header: object, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_tensor_of_every_dtype_is_read_as_the_safetensors_library_reads_it(tmp_path, dtype):
    stored = {"first": torch.ones(3, dtype=torch.uint8), "x": (torch.arange(35).view(5, 7) % 2).to(dtype)}
    save_file(stored, tmp_path / "t.safetensors")
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        expected = file.get_tensor("x")
    found = read_header(tmp_path / "t.safetensors")["x"].read()
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def test_scalars_and_empty_tensors_are_read(path, tmp_path):
    assert read_header(path)["c"].read() == 2.5
    save_file({"empty": torch.empty(0, 4)}, tmp_path / "empty.safetensors")
    assert read_header(tmp_path / "empty.safetensors")["empty"].read().shape == (0, 4)


def test_writing_to_a_tensor_leaves_the_file_alone(path):
    tensor = read_header(path)["a"]
    tensor.read().zero_()
    assert tensor.read().sum() == 15


def test_a_tensor_outlives_the_file_it_was_read_from(path):
    tensor = read_header(path)["a"].read()
    path.unlink()
    assert tensor.sum() == 15


def test_a_file_that_is_cut_while_it_is_mapped_is_named(path, monkeypatch):
    """Its pages cannot be read: using them would end the process with SIGBUS."""
    tensor, real = read_header(path)["a"], mmap.mmap

    def cut_once_mapped(*arguments, **options):
        mapped = real(*arguments, **options)
        os.truncate(path, 0)
        return mapped

    monkeypatch.setattr(mmap, "mmap", cut_once_mapped)
    with pytest.raises(CheckpointError, match=r"(?s)Tensor a can no longer be read.*it ends at byte 0"):
        tensor.read()


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_file_that_goes_away_after_it_was_opened_is_named(path, spoil):
    tensor = read_header(path)["a"]
    spoil(path)
    with pytest.raises(CheckpointError, match=r"(?s)Tensor a can no longer be read.*model\.safetensors"):
        tensor.read()


def test_a_truncated_file_is_named_with_both_sizes(path):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 3)
    with pytest.raises(CheckpointError, match=rf"(?s)model\.safetensors is truncated.*{size} bytes.*{size - 3} bytes"):
        read_header(path)


@pytest.mark.parametrize("size", [0, 5, 8, 40])
def test_a_file_cut_inside_its_header_is_named(path, size):
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends before its header does"):
        read_header(path)


def test_bytes_after_the_last_tensor_are_refused(path):
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="bytes after its last tensor"):
        read_header(path)


def test_a_git_lfs_pointer_is_recognized(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    with pytest.raises(CheckpointError, match=r"(?s)Git LFS pointer.*git lfs pull"):
        read_header(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"(?s)cannot be read.*absent\.safetensors"):
        read_header(tmp_path / "absent.safetensors")


GOOD = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{not json", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        ([1, 2], "not JSON"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', "a name occurs twice"),
        ({"a": 3}, "describes tensor 'a' wrongly"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "describes tensor 'a' wrongly"),
        ({"a": GOOD | {"dtype": "F4"}}, "tensor 'a' in an unknown dtype"),
        ({"a": GOOD | {"dtype": ["F32"]}}, "tensor 'a' in an unknown dtype"),
        ({"a": GOOD | {"shape": [-1]}}, "describes tensor 'a' wrongly"),
        ({"a": GOOD | {"shape": [1.0]}}, "describes tensor 'a' wrongly"),
        ({"a": GOOD | {"shape": [True]}}, "describes tensor 'a' wrongly"),
        ({"a": GOOD | {"shape": [10**4000, 10**4000]}}, "a number of 4001 digits"),
        ({"a": GOOD | {"shape": [10**90, 10**90]}}, "describes tensor 'a' wrongly"),
        ({"a": GOOD | {"data_offsets": [0]}}, "describes tensor 'a' wrongly"),
        ({"a": GOOD | {"data_offsets": [4, 0]}}, "describes tensor 'a' wrongly"),
        ({"a": GOOD | {"shape": [2]}}, "8 bytes for F32"),
        ({"a": GOOD, "b": GOOD}, "tensors that overlap, at 'b'"),
        ({"a": GOOD | {"data_offsets": [4, 8]}}, "tensors that leave a hole, at 'a'"),
    ],
)
def test_a_broken_header_is_refused(tmp_path, header, message):
    write_raw(tmp_path / "x.safetensors", header, bytes(4))
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        read_header(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value)
    assert caught.value.fix


def test_whatever_the_safetensors_library_refuses_is_refused_with_a_clear_error(path):
    """Random bytes of the header are changed, and the file cut or extended; nothing but CheckpointError comes out."""
    generator, original = random.Random(0), path.read_bytes()
    refused = 0
    for _ in range(600):
        content = bytearray(original)
        for _ in range(generator.choice([1, 1, 2])):
            content[generator.randrange(len(content))] = generator.choice(b'\0\xff09[]{}",:-aF')
        path.write_bytes(content[: generator.choice([len(content), generator.randrange(len(content))])])
        try:
            with safe_open(path, "pt"):
                library_refuses = False
        except (SafetensorError, OSError):
            library_refuses = True
        try:
            read_header(path)
            we_refuse = False
        except CheckpointError:
            we_refuse = True
        assert we_refuse or not library_refuses, bytes(content)
        refused += we_refuse
    assert 100 < refused < 600
