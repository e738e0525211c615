"""What an OpenVINO engine is built for: its block of the build file."""

from __future__ import annotations

from typing import Literal

from r1v_export.config import Matmul
from r1v_export.strict import SettingsModel

Int4Inputs = Literal["int8", "exact"]


class OpenVinoConfig(SettingsModel):
    """How OpenVINO computes."""

    matmul: Matmul = "bfloat16"
    """What matrix products round their operands to, in float32 graphs: bfloat16, which is faster, on a CPU that has
    instructions for it; or float32, which rounds nothing. Part of the build, so that its gate judges it."""
    int4_inputs: Int4Inputs = "exact"
    """What 4-bit weights are multiplied with: inputs that are rounded to 8 bits in blocks, or those that the graph
    has."""
