"""The model's weights as a NumPy archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.reference.model import load

ARCHIVE = "weights.npz"


def write_archive(checkpoint: Checkpoint, out: Path, compress: bool) -> None:
    """Write every parameter, in float32, by the reference's name."""
    arrays = {name: tensor.float().numpy() for name, tensor in load(checkpoint).state_dict().items()}
    (np.savez_compressed if compress else np.savez)(out / ARCHIVE, **arrays)
