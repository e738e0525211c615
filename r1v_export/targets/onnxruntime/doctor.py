"""What the target onnxruntime needs on a machine: ONNX Runtime, for the CPU or for CUDA."""

from __future__ import annotations

from r1v_export.errors import CapabilityError
from r1v_export.targets.installed import version_of
from r1v_export.targets.interface import Readiness

REQUIREMENT, GPU_REQUIREMENT = "onnxruntime>=1.32", "onnxruntime-gpu>=1.31.1"
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
"""Both install the module `onnxruntime`; the last one installed wins."""
INSTALL, INSTALL_GPU = f"pip install '{REQUIREMENT}'", f"pip install '{GPU_REQUIREMENT}'"


def readiness() -> Readiness:
    """The version, and the devices that it runs on ("providers")."""
    version = version_of("onnxruntime", *DISTRIBUTIONS)
    if version is None:
        return Readiness("onnxruntime is not installed", INSTALL)
    try:
        from r1v_export.targets.onnxruntime.library import ort
    except Exception as error:  # a missing system library or a package of another platform, each with its own class
        return Readiness(f"onnxruntime does not load: {error}", INSTALL)
    return Readiness(found={"onnxruntime": version, "providers": ", ".join(ort.get_available_providers())})


def require() -> None:
    """Check that ONNX Runtime can be used.

    Raises:
        CapabilityError: ONNX Runtime is not installed, or does not load.
    """
    found = readiness()
    if found.lacks is not None:
        raise CapabilityError(
            "The target onnxruntime cannot be used.", expected=REQUIREMENT, found=found.lacks, fix=found.fix
        )
