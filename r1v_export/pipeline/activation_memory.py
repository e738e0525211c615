"""How much memory a calibration keeps activations between blocks in."""

from __future__ import annotations

from r1v_export.byte_size import parse_size
from r1v_export.config import BuildConfig
from r1v_export.memory import available_bytes
from r1v_export.quantization.calibration.blockwise_runner import ACTIVATION_MEMORY_BYTES

_FREE_SHARE = 1 / 3
"""The rest is for the block that is calibrated: of a 38B with Gram matrices 9 GB, otherwise less than 2."""


def activation_memory_bytes(config: BuildConfig, worker_bytes: int | None = None) -> int:
    """Bytes of activations that are kept in memory. What does not fit is written at every block: the 128 samples of a
    full calibration of a 38B bring 5.5 GB to a ViT block, so that 4 GiB alone would write more than the model.

    Args:
        worker_bytes: free memory of the worker that calibrates; this process's if omitted.
    """
    if config.calibration.activation_memory != "auto":
        return parse_size(config.calibration.activation_memory)
    free = available_bytes() if worker_bytes is None else worker_bytes
    return max(ACTIVATION_MEMORY_BYTES, round(_FREE_SHARE * free))
