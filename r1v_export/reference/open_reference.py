"""The reference as an engine of a bundle: PyTorch, with the weights of the bundle's checkpoint."""

from __future__ import annotations

import torch

from r1v_export.bundle import Bundle
from r1v_export.checkpoint.locate_checkpoint import open_source
from r1v_export.config import Device
from r1v_export.cpus import thread_count
from r1v_export.gpus import require_device
from r1v_export.progress import Progress
from r1v_export.reference.model import ReferenceEngine, load


def open_reference(bundle: Bundle, model: str | None, device: Device) -> ReferenceEngine:
    """An engine over the checkpoint, found again and proved to be the same, file by file.

    Args:
        model: where the checkpoint is; needed if the bundle was built from a folder.

    Raises:
        UsageError: it is not known where the checkpoint is, or `model` is another one.
        CapabilityError: there is no such device.
    """
    require_device(device)
    torch.set_num_threads(thread_count().count)
    checkpoint = open_source(bundle, model, Progress(1, quiet=True))
    return ReferenceEngine(load(checkpoint).to(device))
