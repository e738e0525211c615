"""The embeddings of tokens, read from the embed graph's weights without running it.

After a step of the decoder little of what runs next is in the processor's caches: the embed graph then takes ten times
as long as right after itself, two percent of a step of a small model, to copy one row.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from r1v_export.contract import Sizes
from r1v_export.errors import BundleError
from r1v_export.files import GRAPH_LIMIT_BYTES, open_regular, read_regular_bytes
from r1v_export.targets.onnxruntime.graph_message import FLOAT, FLOAT16, Model
from r1v_export.targets.onnxruntime.runtime.linked_weights import follow_links

_TYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype(np.float32), FLOAT16: np.dtype(np.float16)}


class EmbeddingTable:
    """A table [rows, hidden] in a file, read row by row: no more of it is in this process's memory.

    Args:
        file: of weights.
        offset: where the table begins in it, in bytes.
        shape: rows and hidden size.
        dtype: of its elements.

    Raises:
        OSError: the file is missing, or no regular file.
    """

    def __init__(self, file: Path, offset: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self.path, self.offset, self.shape, self.dtype = file, offset, shape, dtype
        self._file = open_regular(file)

    def holds(self, ids: np.ndarray) -> bool:
        """Whether all ids [batch, tokens], int64, are numbers of its rows; false where there are none."""
        return ids.size > 0 and bool(ids.min() >= 0 and ids.max() < self.shape[0])

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows [batch, tokens, hidden] for ids [batch, tokens] that it `holds`, float32.

        Raises:
            BundleError: the file has become shorter, or cannot be read.
        """
        hidden = self.shape[1]
        found = np.empty((ids.size, hidden), self.dtype)
        file, row_bytes = self._file.fileno(), hidden * self.dtype.itemsize
        for row, index in zip(found, ids.ravel().tolist(), strict=True):
            try:
                length = os.preadv(file, [row], self.offset + index * row_bytes)
            except OSError as error:
                raise self._unreadable(error) from error
            if length != row_bytes:
                raise self._unreadable("the file ends before the table does")
        return found.reshape(*ids.shape, hidden).astype(np.float32, copy=False)

    def _unreadable(self, found: object) -> BundleError:
        fix = "run `r1v-export verify`, and build the bundle again"
        return BundleError("The table of embeddings cannot be read.", where=self.path, found=found, fix=fix)


def find_table(model: Path, weights_root: Path, sizes: Sizes) -> EmbeddingTable | None:
    """The table of an embed graph; None where the graph has no single one as it is, of numbers that need no scale.

    Args:
        model: the graph's file.
        weights_root: what the locations of its weights are relative to.

    Raises:
        BundleError: graph or weights are missing or no regular files.
    """
    try:
        proto = Model(read_regular_bytes(model, GRAPH_LIMIT_BYTES))
        folder = follow_links(proto, weights_root)
        shape = (sizes.vocab, sizes.hidden)
        tables = [each for each in proto.graph.initializer if each.dims == shape and each.external_data]
        if len(tables) != 1 or tables[0].data_type not in _TYPES:
            return None
        place = {entry.key: entry.value for entry in tables[0].external_data}
        file, offset = folder / place["location"], int(place.get("offset", 0))
        return EmbeddingTable(file, offset, shape, _TYPES[tables[0].data_type])
    except (OSError, ValueError) as error:
        fix = "build the bundle again"
        raise BundleError("An engine cannot be read.", where=model, found=error, fix=fix) from error
