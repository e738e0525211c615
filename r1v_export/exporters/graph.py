"""What an exporter of one graph has to say; `trace` and `bind` do the rest, the same for all graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
from torch import Tensor, nn

Read = Callable[[str], Tensor]
"""Reads one checkpoint tensor by its published name."""

Derived = Callable[[Read], Tensor]
"""Makes an initializer that is not a checkpoint tensor as it stands."""

Rewrite = Callable[[ir.Model], Mapping[str, Derived]]
"""Changes a traced graph in place; returns how the initializers that it added or changed are made, by name."""


@dataclass(frozen=True)
class GraphSource:
    """One graph of the contract, before tracing.

    module: makes the module whose forward takes the graph's inputs, in the contract's order, and returns its outputs.
        Called under FakeTensorMode: nothing is allocated.
    prefix: what the checkpoint puts in front of the module's own parameter names.
    derived: initializers that are not checkpoint tensors as they stand, by full name.
    value_names: names for values inside the graph, by the full name of the module that makes them.
    """

    module: Callable[[], nn.Module]
    prefix: str
    derived: Mapping[str, Derived] = field(default_factory=dict)
    value_names: Mapping[str, str] = field(default_factory=dict)
