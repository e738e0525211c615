"""Lowering: what TensorRT's parser and builder need beyond the standard graphs, one pass per file.

Passes leave the numbers of a graph as they are: the tests run what they write in ONNX Runtime.
"""

from __future__ import annotations

import onnx_ir as ir

from r1v_export.exporters.passes.run_passes import run_passes
from r1v_export.targets.scale_types import ScaleTypes
from r1v_export.targets.tensorrt.lower.explicit_mask import ExplicitMask
from r1v_export.targets.tensorrt.lower.static_capacity import StaticCapacity

__all__ = ["lower"]


def lower(model: ir.Model, capacity: int) -> None:
    """Lower one of the contract's graphs, or several concatenated, in place.

    Args:
        capacity: slots of a decoder's cache; of no meaning for other graphs.

    Raises:
        PassError: the graph is not as our exporters write it.
    """
    run_passes(model, StaticCapacity(capacity), ExplicitMask(), ScaleTypes())
