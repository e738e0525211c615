"""`contract.json`: the graphs of a bundle and every tensor between them, as data.

Made from `r1v_export.contract`, whose tables are the only definition; here is only how they are written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import PositiveInt

from r1v_export import contract
from r1v_export.contract import COMPUTE, Sizes, TensorContract
from r1v_export.serialized.document import Document, Strict

CONTRACT_FILE = "contract.json"


class TensorDocument(Strict):
    """One input or output of a graph."""

    name: str
    shape: tuple[str | int, ...]
    """Symbols, explained in `symbols`, and sizes."""
    dtype: str
    """ONNX element type in lower case, such as "float32" or "int64"."""


class GraphDocument(Strict):
    """One graph; inputs and outputs in the order in which the graph has them."""

    name: str
    file: str | None
    """The standard ONNX graph in the bundle; null where the bundle was built without it."""
    inputs: tuple[TensorDocument, ...]
    outputs: tuple[TensorDocument, ...]


class CacheDocument(Strict):
    """The decoder's key-value cache: which tensors hold it, and which slots a step fills.

    With `seq` new tokens per row, row b fills the slots from `write_index`[b] up to `length`[b], that one excluded.
    Its n-th new token sees the slots up to its own. Padding stands behind a row's valid tokens, counts in `length`,
    is seen by none of them, and is overwritten by the tokens that come next.
    """

    layers: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    past_key: str
    """Input of each layer; `{layer}` stands for its number, from 0. So do the next three."""
    past_value: str
    present_key: str
    """Output of each layer: the past with the new tokens in their slots. It may be the same memory as the past."""
    present_value: str
    shape: tuple[str | int, ...]
    dtype: str
    batch_dim: Literal[0] = 0
    capacity_dim: Literal[2] = 2
    write_index: str
    """Input: slot of each row's first new token."""
    length: str
    """Input: slots in use after the step, padding included."""
    length_rule: Literal["write_index + seq"] = "write_index + seq"
    padding: Literal["right"] = "right"
    position_ids: str
    """Input: position of each new token, which is its slot."""
    logits_index: str
    """Input: indices among a row's new tokens of those whose logits are wanted; for the next token one, the row's last
    valid token."""
    logits: str
    """Output: logits after each of these tokens."""


class SizesDocument(Strict):
    """Sizes that the checkpoint fixes."""

    tile_size: PositiveInt
    tokens_per_tile: PositiveInt
    vision_features: PositiveInt
    hidden: PositiveInt
    vocab: PositiveInt
    layers: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt


class ContractDocument(Document):
    """`contract.json`."""

    schema_version: Literal[1] = 1
    opset: PositiveInt
    compute: Literal["float32", "float16", "bfloat16"]
    """Element type of all that is not an index."""
    sizes: SizesDocument
    symbols: dict[str, str]
    """What each symbol in a shape counts."""
    graphs: tuple[GraphDocument, ...]
    """In the order of the data flow. Image embeddings leave the projector as [tiles, tokens of a tile, hidden] and
    enter the embed graph, which puts one row of them in the place of each image token, as [image_tokens, hidden]."""
    cache: CacheDocument


def describe_contract(
    sizes: Sizes, compute: Literal["float32", "float16", "bfloat16"], files: Mapping[str, str]
) -> ContractDocument:
    """The contract of a bundle.

    Args:
        sizes: of its model.
        compute: what its graphs compute in.
        files: graph -> its file in the bundle, of those graphs that the bundle has.
    """

    def tensors(rows: tuple[TensorContract, ...]) -> tuple[TensorDocument, ...]:
        return tuple(
            TensorDocument(name=row.name, shape=row.shape, dtype=compute if row.dtype == COMPUTE else row.dtype)
            for row in rows
        )

    graphs = contract.graph_contracts(sizes)
    past = next(row for row in graphs[contract.DECODER].inputs if row.name == contract.past_key(0))
    layer = "{layer}"
    return ContractDocument(
        opset=contract.OPSET,
        compute=compute,
        sizes=SizesDocument(**vars(sizes)),
        symbols=dict(contract.SYMBOLS),
        graphs=tuple(
            GraphDocument(name=name, file=files.get(name), inputs=tensors(graph.inputs), outputs=tensors(graph.outputs))
            for name, graph in graphs.items()
        ),
        cache=CacheDocument(
            layers=sizes.layers,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            past_key=contract.past_key(layer),
            past_value=contract.past_value(layer),
            present_key=contract.present_key(layer),
            present_value=contract.present_value(layer),
            shape=past.shape,
            dtype=compute,
            write_index=contract.CACHE_WRITE_INDEX,
            length=contract.CACHE_LENGTH,
            position_ids=contract.POSITION_IDS,
            logits_index=contract.LOGITS_INDEX,
            logits=contract.LOGITS,
        ),
    )
