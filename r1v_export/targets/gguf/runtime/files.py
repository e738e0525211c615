"""The two GGUF files read back with gguf-py: metadata, and tensors dequantized by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from r1v_export.errors import BundleError

EIGHT_BIT = frozenset({"Q8_0", "Q4_0", "Q4_1"})
"""Types whose products llama.cpp computes with inputs of 8 bits, one scale for 32 of them."""


class GgufFile:
    """One file.

    Raises:
        BundleError: it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
            raise self.unusable(error) from error
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._fields = reader.fields

    def value(self, key: str) -> Any:
        """A key's value."""
        if key not in self._fields:
            raise self.unusable(f"no key {key}")
        return self._fields[key].contents()

    def kind(self, name: str) -> str:
        """Name of a tensor's type."""
        return str(self._tensor(name).tensor_type.name)

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self.tensors

    def read(self, name: str) -> Tensor:
        """A tensor in float32, in PyTorch's order of axes."""
        tensor = self._tensor(name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        return torch.from_numpy(np.ascontiguousarray(values, np.float32).reshape(shape).copy())

    def unusable(self, found: object) -> BundleError:
        """Return the error for a file that cannot be used."""
        return BundleError(
            "The GGUF file cannot be used.",
            where=self.path,
            expected="the keys and tensors that the target gguf writes",
            found=found,
            fix="build the bundle again",
        )

    def _tensor(self, name: str) -> gguf.ReaderTensor:
        if name not in self.tensors:
            raise self.unusable(f"no tensor {name}")
        return self.tensors[name]
