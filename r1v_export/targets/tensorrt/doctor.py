"""What the targets tensorrt and tensorrt-rtx need on a machine: their library, and a GPU to run the engines."""

from __future__ import annotations

from r1v_export.errors import CapabilityError
from r1v_export.gpus import no_gpu
from r1v_export.targets.interface import Readiness
from r1v_export.targets.tensorrt.device import compute_capability
from r1v_export.targets.tensorrt.library import DISTRIBUTIONS, load


def readiness(target: str) -> Readiness:
    """Whether the library loads here, and whether it can build for anything.

    Args:
        target: `tensorrt` or `tensorrt-rtx`.
    """
    distribution = DISTRIBUTIONS[target]
    try:
        library = load(target)
    except CapabilityError as error:
        return Readiness(f"{distribution.requirement} does not load: {error.found}", error.fix)
    capability = compute_capability()
    found = {distribution.distribution: library.version, "GPU": str(capability or no_gpu())}
    if capability is None and not distribution.builds_without_gpu:
        lacks = "it builds for the GPU of this machine only, and there is none"
        return Readiness(lacks, "use a machine with one", found)
    return Readiness(found=found)
