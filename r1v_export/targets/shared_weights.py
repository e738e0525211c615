"""Engines that share the weights of the bundle's standard graphs."""

from __future__ import annotations

import onnx_ir as ir


def point_weights_to(model: ir.Model, folder: str) -> None:
    """Make the locations of external weights relative to the folder that holds the graphs' folder.

    The weights themselves stay where they are, unread.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(
                f"{folder}/{tensor.location}",
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
            )
