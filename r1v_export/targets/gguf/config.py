"""The block of a build file for GGUF files: there is nothing to choose."""

from __future__ import annotations

from r1v_export.targets.interface import NoOptions


class GgufConfig(NoOptions):
    """What a tensor is stored as follows from the build's precision and recipe."""
