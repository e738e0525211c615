"""What an ONNX Runtime engine is built for: its block of the build file."""

from __future__ import annotations

from typing import Literal

from r1v_export.strict import SettingsModel


class OnnxRuntimeConfig(SettingsModel):
    """How ONNX Runtime computes."""

    int4_inputs: Literal["float32", "int8"] = "float32"
    """What 4-bit weights are multiplied with on the CPU: inputs as the graph has them, or rounded to 8 bits in blocks,
    which is faster. Part of the build, so that its gate judges it."""
