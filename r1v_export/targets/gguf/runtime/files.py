"""The two GGUF files read back with gguf-py, through the reader of checkpoints; errors are a bundle's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from r1v_export.checkpoint.gguf.file import GgufFile
from r1v_export.errors import BundleError, CheckpointError

INPUTS_PER_SCALE = dict.fromkeys(("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"), 32) | dict.fromkeys(
    ("Q4_K", "Q5_K", "Q6_K"), 256
)
"""Types whose products llama.cpp computes with inputs of 8 bits -> how many of them share a scale."""


class BundleFile:
    """One file of a bundle.

    Raises:
        BundleError: it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = GgufFile(path)
        except CheckpointError as error:
            raise _as_bundle_error(error) from error
        self._file.forget_lists()

    def size(self, key: str) -> int:
        """A key's whole number."""
        try:
            return int(self._file.required(key, int))
        except CheckpointError as error:
            raise _as_bundle_error(error) from error

    def number(self, key: str) -> float:
        """A key's number."""
        try:
            return float(self._file.required(key, float))
        except CheckpointError as error:
            raise _as_bundle_error(error) from error

    def kind(self, name: str) -> str:
        """Name of a tensor's type."""
        return self._file.kind(name)

    def read(self, name: str) -> Tensor:
        """A tensor in float32, in PyTorch's order of axes."""
        try:
            return self._file.read_float32(name)
        except CheckpointError as error:
            raise _as_bundle_error(error) from error

    def read_rows(self, name: str, rows: Tensor) -> Tensor:
        """Some rows of a matrix in float32, [..., columns] for rows [...]; no others are dequantized."""
        try:
            return self._file.read_rows(name, rows).float()
        except CheckpointError as error:
            raise _as_bundle_error(error) from error


def _as_bundle_error(error: CheckpointError) -> BundleError:
    fix = "build the bundle again"
    return BundleError(error.what, where=error.where, expected=error.expected, found=error.found, fix=fix)
