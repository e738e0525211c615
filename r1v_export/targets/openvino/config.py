"""What an OpenVINO engine is built for: its block of the build file."""

from __future__ import annotations

from r1v_export.config import Matmul
from r1v_export.strict import StrictModel
from r1v_export.targets.int4_inputs import Int4Inputs


class OpenVinoConfig(StrictModel):
    """How OpenVINO computes."""

    matmul: Matmul = "bfloat16"
    """What matrix products round their operands to, in float32 graphs: bfloat16, which is faster, on a CPU that has
    instructions for it; or float32, which rounds nothing. Part of the build, so that its gate judges it."""
    int4_inputs: Int4Inputs | None = None
    """What 4-bit weights are multiplied with: inputs that are rounded to 8 bits in blocks, which is faster, or those
    that the graph has. None: int8 where there are such weights."""
