"""The block of a build file for compressed-tensors checkpoints: there is nothing to choose."""

from __future__ import annotations

from r1v_export.targets.interface import NoOptions


class CompressedTensorsConfig(NoOptions):
    """A checkpoint is the same for every runtime and any number of GPUs."""
