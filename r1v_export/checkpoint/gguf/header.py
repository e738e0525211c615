"""The header of a GGUF file, walked once before gguf-py reads it: every length lies within the file.

gguf-py trusts the counts that it reads, and would walk an array of 2^60 elements that are not there to the end.
Source: ggml, docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from r1v_export.count import Count
from r1v_export.files import open_regular

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value -> its bytes, where it has a fixed size."""
_MAX_AXES = 4


def check_header(path: Path) -> None:
    """Walk the keys and the list of tensors.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no GGUF file of a version that is read, or ends before its header does.
    """
    with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != _MAGIC:
            raise ValueError(f"it begins with {data[:4]!r}")
        cursor = _Cursor(data)
        cursor.skip(4)
        version = cursor.number("<I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}")
        tensors, keys = cursor.number("<Q"), cursor.number("<Q")
        for _ in range(keys):
            cursor.skip_string()
            cursor.skip_value(cursor.number("<I"))
        for _ in range(tensors):
            cursor.skip_string()
            axes = cursor.number("<I")
            if axes > _MAX_AXES:
                raise ValueError(f"a tensor of {Count(axes, 'axis', 'axes')}")
            cursor.skip(8 * axes + 4 + 8)


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise ValueError(f"it ends within its header, after {Count(len(self._data), 'byte')}")

    def number(self, layout: str) -> int:
        start = self._at
        self.skip(struct.calcsize(layout))
        (value,) = struct.unpack_from(layout, self._data, start)
        return int(value)

    def skip_string(self) -> None:
        self.skip(self.number("<Q"))

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self.skip_string()
        elif kind == _ARRAY:
            element, count = self.number("<I"), self.number("<Q")
            if element == _STRING:
                for _ in range(count):
                    self.skip_string()
            else:
                self.skip(count * self._size(element))
        else:
            self.skip(self._size(kind))

    @staticmethod
    def _size(kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError(f"a value of type {kind}")
        return _SIZES[kind]
