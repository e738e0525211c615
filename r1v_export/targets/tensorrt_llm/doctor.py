"""What the target tensorrt-llm needs on a machine: nothing for checkpoints, TensorRT-LLM and GPUs for engines."""

from __future__ import annotations

from r1v_export.targets.installed import version_of
from r1v_export.targets.interface import Readiness

DISTRIBUTION = "tensorrt-llm"
REQUIREMENT = "tensorrt-llm>=1.0,<1.3"
INSTALL = f"pip install '{REQUIREMENT}' in an environment of its own, or NVIDIA's container"
"""It pins TensorRT 10.13 and its own torch."""
VISION = "onnxruntime"
"""Runs the vision graph next to the checkpoint."""


def readiness() -> Readiness:
    """Checkpoints are written by this package alone."""
    version = version_of("tensorrt_llm", DISTRIBUTION)
    if version is None:
        return Readiness(found={"engines": f"need TensorRT-LLM: {INSTALL}"})
    return Readiness(found={DISTRIBUTION: version})
