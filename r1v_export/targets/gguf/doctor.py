"""What GGUF files need on a machine: the package gguf to write and read them, llama.cpp to serve them."""

from __future__ import annotations

from r1v_export.errors import CapabilityError
from r1v_export.targets.installed import version_of
from r1v_export.targets.interface import Readiness

REQUIREMENT = "gguf>=0.19,<1"
INSTALL = f"pip install '{REQUIREMENT}'"

RUNTIMES = {"xllamacpp": "xllamacpp", "llama-cpp-python": "llama_cpp"}
"""Distribution -> module of what loads the files."""


def readiness() -> Readiness:
    """Files are written and checked with the package gguf alone."""
    version = version_of("gguf", "gguf")
    if version is None:
        return Readiness("gguf is not installed", INSTALL)
    runtimes = {name: version_of(module, name) for name, module in RUNTIMES.items()}
    return Readiness(found={"gguf": version} | {name: found for name, found in runtimes.items() if found is not None})


def require() -> None:
    """Check that the package gguf can be used.

    Raises:
        CapabilityError: it is not installed.
    """
    found = readiness()
    if found.lacks is not None:
        raise CapabilityError("The target gguf cannot be used.", expected=REQUIREMENT, found=found.lacks, fix=found.fix)
