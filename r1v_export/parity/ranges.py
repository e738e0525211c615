"""Whether what an engine computes in can hold what the model reaches inside, whatever this machine's kernels do.

ONNX Runtime's CPU computes float16 graphs in float32: an activation of 4e5 passes every boundary there, and is infinite
on a GPU. So the reference's own tensors are compared with the type's range.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

from r1v_export.config import Compute
from r1v_export.contract import BlockwiseEngine, Engine
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.schema import LayerRange, RangeFacts, Saturation
from r1v_export.parity.tolerances import ToleranceProfile

LARGEST: Mapping[Compute, float] = {"float16": 65504.0}
"""Types that end before a model may; bfloat16 and float32 end at 3.4e38."""

RECORDED: frozenset[ToleranceProfile] = frozenset({"fp16", "8-bit inputs"})
"""Limits of the arithmetic gates in which `recorder` records the reference's magnitudes, if it can."""


class Magnitudes(Protocol):
    """Largest magnitudes recorded during a forward pass."""

    def by_layer(self) -> dict[str, tuple[str, float]]:
        """Layer -> its tensor with the largest magnitude, and that; infinite where one was NaN."""
        ...

    def saturations(self) -> dict[str, float]:
        """Linear -> its input's largest magnitude over what its static scale represents."""
        ...


@runtime_checkable
class RecordsMagnitudes(Protocol):
    """An engine that can record how large its own tensors become."""

    def recorded(self) -> AbstractContextManager[Magnitudes]:
        """Record the magnitudes of all tensors while the context is open."""
        ...


def recorder(engine: Engine | BlockwiseEngine, options: CheckOptions) -> AbstractContextManager[Magnitudes | None]:
    """Record magnitudes while the context is open, if the type has a limit and the engine can record its tensors."""
    ends = options.compute in LARGEST or options.quantized_inputs
    if options.gate == "arithmetic" and ends and isinstance(engine, RecordsMagnitudes):
        return engine.recorded()
    return nullcontext()


def range_facts(magnitudes: Magnitudes | None, compute: Compute) -> RangeFacts | None:
    """How near the tensors come to the end of the type; None where it ends no earlier than float32."""
    if magnitudes is None or compute not in LARGEST:
        return None
    layers = tuple(
        LayerRange(layer=layer, tensor=tensor, magnitude=magnitude)
        for layer, (tensor, magnitude) in magnitudes.by_layer().items()
    )
    return RangeFacts(dtype=compute, largest=LARGEST[compute], layers=layers)


def saturations(magnitudes: Magnitudes | None) -> tuple[Saturation, ...]:
    """Linears whose static input scale does not represent all that they were given."""
    found = magnitudes.saturations() if magnitudes else {}
    return tuple(Saturation(linear=linear, ratio=ratio) for linear, ratio in found.items() if ratio > 1)
