"""One GGUF file: metadata and tensors, read and dequantized by gguf-py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from r1v_export.checkpoint.gguf.header import check_header
from r1v_export.errors import CheckpointError

READABLE = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    **dict.fromkeys(("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), torch.float32),
}
"""Type of a tensor -> dtype that it is read as; quantized ones are dequantized."""

_MAX_AXES = 4
_VALUES_AT_ONCE = 1 << 22
"""That are dequantized together into a tensor of float32: gguf-py takes several times their memory for it."""


class GgufFile:
    """A file whose header is sound and whose tensors lie within it.

    Raises:
        CheckpointError: it is missing, truncated or damaged, or holds a tensor of a type that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise self.unusable("a GGUF file", "no file", "check the path")
        try:
            check_header(path)
            reader = gguf.GGUFReader(path)
        # The library has no errors of its own: whatever numpy raises where bytes are missing or senseless.
        except Exception as error:
            raise self.unusable("a GGUF file of version 2 or 3", error, "download or copy it again") from error
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._fields = reader.fields
        for tensor in reader.tensors:
            self._check(tensor)

    def value(self, key: str, default: Any = None) -> Any:
        """A key's value, or the default where the file has no such key."""
        if key not in self._fields:
            return default
        try:
            return self._fields[key].contents()
        except Exception as error:  # as above
            raise self.unusable(f"a value of {key}", error, "download or copy it again") from error

    def required(self, key: str, kind: type) -> Any:
        """A key's value of a type.

        Raises:
            CheckpointError: there is none, or it is of another type.
        """
        value = self.value(key)
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise self.unusable(f"{key}, {kind.__name__}", repr(value)[:80], "use a file of a current converter")
        return float(f"{value:.7g}") if kind is float else value  # stored in 32 bits

    def forget_lists(self) -> None:
        """Drop the keys that are lists, such as the tokens: gguf-py holds arrays for each entry, 0.27 GB of 152,064
        tokens. `value` then has none of them."""
        lists = gguf.GGUFValueType.ARRAY
        for key in [key for key, field in self._fields.items() if lists in field.types]:
            del self._fields[key]

    def kind(self, name: str) -> str:
        """Name of a tensor's type."""
        return str(self.tensors[name].tensor_type.name)

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor is read as."""
        return READABLE[self.kind(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in PyTorch's order of axes."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> Tensor:
        """A tensor, dequantized to float32 where it is quantized.

        Raises:
            CheckpointError: there is none of that name.
        """
        return self._dequantized(name, self._data(name)).reshape(self.shape(name))

    def read_float32(self, name: str) -> Tensor:
        """The same in float32 in any case, and no second time in memory: a few rows of it are dequantized at a time.

        Raises:
            CheckpointError: there is none of that name.
        """
        data, values = self._data(name), torch.empty(self.shape(name))
        stored, rows = data.reshape(-1, data.shape[-1]), values.view(-1, values.shape[-1])
        step = max(1, _VALUES_AT_ONCE // values.shape[-1])
        for start in range(0, len(rows), step):
            rows[start : start + step] = self._dequantized(name, stored[start : start + step])
        return values

    def read_rows(self, name: str, rows: Tensor) -> Tensor:
        """Some rows of a matrix [rows, columns], as `read` has them: [..., columns] for rows [...].

        Raises:
            CheckpointError: there is none of that name.
        """
        data = self._data(name)[rows.flatten().numpy()]
        return self._dequantized(name, data).reshape(*rows.shape, self.shape(name)[-1])

    def _data(self, name: str) -> np.ndarray:
        """A tensor as it is stored, a map of the file."""
        if name not in self.tensors:
            raise self.unusable(name, "no such tensor", "use the files that belong together")
        data: np.ndarray = self.tensors[name].data
        return data

    def _dequantized(self, name: str, data: np.ndarray) -> Tensor:
        """Values of a tensor or of some of its rows, in memory of their own."""
        if self.kind(name) == "BF16":
            return torch.from_numpy(np.ascontiguousarray(data).view(np.int16).copy()).view(torch.bfloat16)
        if self.kind(name) not in ("F32", "F16"):
            data = gguf.quants.dequantize(data, self.tensors[name].tensor_type)
        return torch.from_numpy(np.ascontiguousarray(data).copy())

    def unusable(self, expected: object, found: object, fix: str) -> CheckpointError:
        """Return the error for a file that cannot be used."""
        return CheckpointError(
            f"The GGUF file {self.path.name} cannot be used.", where=self.path, expected=expected, found=found, fix=fix
        )

    def _check(self, tensor: gguf.ReaderTensor) -> None:
        kind, shape = tensor.tensor_type.name, self.shape(tensor.name)
        if kind not in READABLE:
            raise self.unusable(
                ", ".join(READABLE),
                f"{tensor.name} of type {kind}",
                "use a file of one of these types, or the checkpoint that it was made from",
            )
        block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        if not 1 <= len(shape) <= _MAX_AXES or 0 in shape or shape[-1] % block:
            raise self.unusable(f"rows of whole blocks in {tensor.name}", shape, "download or copy it again")
        if math.prod(shape) // block * size != tensor.data.nbytes:
            raise self.unusable(f"all bytes of {tensor.name}", tensor.data.nbytes, "download or copy it again")
