"""An archive opened again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from r1v_export.errors import BundleError
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.model import Model, ReferenceEngine
from r1v_numpy_archive.write.archive import ARCHIVE


def open_archive(folder: Path, spec: ModelSpec) -> ReferenceEngine:
    """The model with the archive's weights, as PyTorch computes it.

    Raises:
        BundleError: the archive is missing or damaged, or of another model.
    """
    with torch.device("meta"):
        model = Model(spec)
    try:
        with np.load(folder / ARCHIVE) as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        model.load_state_dict(weights, assign=True)
    except Exception as error:
        raise BundleError("The archive cannot be used.", where=folder / ARCHIVE, found=error) from error
    return ReferenceEngine(model)
