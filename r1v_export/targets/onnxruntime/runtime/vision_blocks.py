"""The vision graph with the output of each ViT block as a further output, for the parity gate."""

from __future__ import annotations

from itertools import count, takewhile
from pathlib import Path

from r1v_export import contract
from r1v_export.errors import CapabilityError
from r1v_export.files import GRAPH_LIMIT_BYTES, read_regular_bytes
from r1v_export.targets.onnxruntime.graph_message import Model


def with_vision_blocks(model: Path) -> bytes:
    """The ONNX file `model` with its blocks' outputs behind its own; weights are not read.

    Raises:
        CapabilityError: the graph has no value named as a block's output.
    """
    proto = Model(read_regular_bytes(model, GRAPH_LIMIT_BYTES))
    values = {value.name: value for value in proto.graph.value_info}
    names = list(takewhile(values.__contains__, map(contract.vision_block, count())))
    if not names:
        raise CapabilityError(
            "The vision graph does not show its ViT blocks.",
            where=model,
            expected=contract.vision_block(0),
            fix="compare without blocks",
        )
    for name in names:
        proto.graph.add_output(values[name])
    return proto.SerializeToString()
