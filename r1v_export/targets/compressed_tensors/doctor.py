"""What compressed-tensors checkpoints need on a machine: nothing to write and read them, a runtime to serve them."""

from __future__ import annotations

from r1v_export.targets.installed import version_of
from r1v_export.targets.interface import Readiness

RUNTIMES = {"vllm": "vllm", "sglang": "sglang"}
"""Distribution -> module of what loads the layout."""


def readiness() -> Readiness:
    """Checkpoints are written and checked by this package alone."""
    versions = {name: version_of(module, name) for name, module in RUNTIMES.items()}
    return Readiness(found={name: version for name, version in versions.items() if version is not None})
