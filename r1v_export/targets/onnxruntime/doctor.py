"""What the target onnxruntime needs on a machine: ONNX Runtime, for the CPU or for CUDA."""

from __future__ import annotations

from r1v_export.errors import CapabilityError
from r1v_export.targets.installed import version_of
from r1v_export.targets.interface import Readiness

REQUIREMENT, GPU_REQUIREMENT = "onnxruntime>=1.32", "onnxruntime-gpu>=1.32"
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
"""Both install the module `onnxruntime`; the last one installed wins."""
INSTALL, INSTALL_GPU = f"pip install '{REQUIREMENT}'", f"pip install '{GPU_REQUIREMENT}'"


def readiness() -> Readiness:
    """The version, and the devices that it runs on ("providers")."""
    version = version_of("onnxruntime", *DISTRIBUTIONS)
    if version is None:
        return Readiness("onnxruntime is not installed", INSTALL)
    import onnxruntime

    return Readiness(found={"onnxruntime": version, "providers": ", ".join(onnxruntime.get_available_providers())})


def require() -> None:
    """Check that ONNX Runtime is installed.

    Raises:
        CapabilityError: ONNX Runtime is not installed.
    """
    found = readiness()
    if found.lacks is not None:
        raise CapabilityError(
            "The target onnxruntime needs a package that is not installed.", expected=REQUIREMENT, fix=found.fix
        )
