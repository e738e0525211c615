"""What the target openvino needs on a machine: OpenVINO's runtime, and for fast products a CPU with bfloat16."""

from __future__ import annotations

from r1v_export.errors import CapabilityError
from r1v_export.targets.installed import version_of
from r1v_export.targets.interface import Readiness
from r1v_export.targets.openvino.signal_stack import kept_signal_stack

REQUIREMENT = "openvino>=2026.4,<2027"
DISTRIBUTIONS = ("openvino",)
INSTALL = f"pip install '{REQUIREMENT}'"


def readiness() -> Readiness:
    """The version, and what this CPU computes products in."""
    version = version_of("openvino", *DISTRIBUTIONS)
    if version is None:
        return Readiness("openvino is not installed", INSTALL)
    try:
        products = "bfloat16, float32" if has_bfloat16() else "float32"
    except Exception as error:  # a missing system library or a package of another platform, each with its own class
        return Readiness(f"openvino does not load: {error}", INSTALL)
    return Readiness(found={"openvino": version, "products": products})


def require() -> None:
    """Check that OpenVINO can be used.

    Raises:
        CapabilityError: OpenVINO is not installed, or does not load.
    """
    found = readiness()
    if found.lacks is not None:
        raise CapabilityError(
            "The target openvino cannot be used.", expected=REQUIREMENT, found=found.lacks, fix=found.fix
        )


def has_bfloat16() -> bool:
    """Whether OpenVINO finds instructions for bfloat16 products in this CPU."""
    from r1v_export.targets.openvino.library import ov

    with kept_signal_stack():
        capabilities: list[str] = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities
