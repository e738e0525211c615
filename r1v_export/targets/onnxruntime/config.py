"""What an ONNX Runtime engine is built for: its block of the build file."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from r1v_export.config import ImageProducts
from r1v_export.strict import StrictModel
from r1v_export.targets.int4_inputs import Int4Inputs


def _as_written_now(value: object) -> object:
    """Bundles of earlier versions have `float32` for `exact`."""
    return "exact" if value == "float32" else value


class OnnxRuntimeConfig(StrictModel):
    """How ONNX Runtime computes."""

    int4_inputs: Annotated[Int4Inputs | None, BeforeValidator(_as_written_now)] = None
    """What 4-bit weights are multiplied with on the CPU: inputs that are rounded to 8 bits in blocks, which is faster,
    or those that the graph has. Where inputs are rounded, so is a head that the recipe leaves alone. Part of the build,
    so that its gate judges it. None: int8 where there are such weights on a CPU."""
    image_products: ImageProducts | None = None
    """What weights and inputs of a float32 vision tower are rounded to where a part of its own encodes the images, by
    OpenVINO or, for int8, by ONNX Runtime. None: int8 where inputs of 4-bit weights are rounded to 8 bits, too, and
    bfloat16 elsewhere, and where int8 is out of tolerance or not for this CPU."""
