"""Headers that claim more than the file has, which gguf-py would follow."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from r1v_export.checkpoint.gguf.header import check_header


def header(tensors: int, keys: int, rest: bytes, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + rest


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


NAME = string(b"k")
CASES = {
    "an array of 2^60 bytes": header(0, 1, NAME + struct.pack("<IIQ", 9, 0, 2**60)),
    "an array of 2^60 strings": header(0, 1, NAME + struct.pack("<IIQ", 9, 8, 2**60)),
    "a string of 2^60 bytes": header(0, 1, string(b"k", 2**60)),
    "2^60 keys": header(0, 2**60, b""),
    "2^60 tensors": header(2**60, 0, b""),
    "an array of arrays": header(0, 1, NAME + struct.pack("<IIQ", 9, 9, 2**40)),
    "an unknown type": header(0, 1, NAME + struct.pack("<I", 77)),
    "a tensor of 2^31 axes": header(1, 0, NAME + struct.pack("<I", 2**31)),
    "version 1": header(0, 0, b"", version=1),
    "another magic": header(0, 0, b"", magic=b"GGML"),
    "nothing": b"",
}


@pytest.mark.parametrize("case", CASES)
def test_a_header_that_cannot_be_is_refused_at_once(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(CASES[case])
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"."):
        check_header(path)
    assert time.monotonic() - start < 1


def test_a_header_of_every_type_of_value_is_walked_to_its_end(tmp_path: Path) -> None:
    values = b"".join(NAME + struct.pack("<I", kind) + bytes(size) for kind, size in ((0, 1), (5, 4), (7, 1), (12, 8)))
    arrays = (
        NAME + struct.pack("<IIQ", 9, 8, 2) + string(b"a") + string(b"") + NAME + struct.pack("<IIQHH", 9, 2, 2, 1, 2)
    )
    tensor = string(b"t") + struct.pack("<IQQIQ", 2, 3, 4, 0, 0)
    path = tmp_path / "x.gguf"
    path.write_bytes(header(1, 7, values + arrays + NAME + struct.pack("<I", 8) + string(b"text") + tensor))
    check_header(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="ends within its header"):
        check_header(path)
