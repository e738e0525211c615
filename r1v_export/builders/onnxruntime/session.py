"""ONNX Runtime sessions, set up the way they run fastest, on the CPU or on a CUDA GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnxruntime as ort
import psutil

from r1v_export.config import Device
from r1v_export.errors import BundleError, CapabilityError

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_INT4_ARITHMETIC, _FLOAT32 = "session.qdq_matmulnbits_accuracy_level", "1"
"""ONNX Runtime's own choice for 4-bit weights is int8 activations: faster, but not what the graph says."""


def check_device(device: Device) -> None:
    """Raise CapabilityError unless the installed ONNX Runtime can run on `device`."""
    available = ort.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in available:
        raise CapabilityError(
            "This ONNX Runtime cannot use a CUDA GPU.",
            where=f"onnxruntime {ort.__version__}",
            expected="CUDAExecutionProvider",
            found=", ".join(available),
            fix="pip install 'r1v-export[onnxruntime-gpu]' on a machine with a CUDA GPU, or use --device cpu",
        )


def physical_cores() -> int:
    """Cores this process may use, without hyper-threads: what suits dense arithmetic best."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def open_session(
    model: Path | bytes, weights_root: Path, device: Device, threads: int | None = None
) -> ort.InferenceSession:
    """A session on `model`, whose weights' locations are relative to `weights_root`.

    Args:
        model: an ONNX file or its content.
        threads: that one operator may use, `physical_cores()` if None. (ONNX Runtime's own default halves the cores of
            a machine without hyper-threads.)

    Raises:
        CapabilityError: ONNX Runtime has no such device.
        BundleError: the model or its weights are missing, or ONNX Runtime refuses them.
    """
    check_device(device)
    where = weights_root if isinstance(model, bytes) else model
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights_root))
    options.add_session_config_entry(_INT4_ARITHMETIC, _FLOAT32)
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
        session = ort.InferenceSession(content, options, providers=_providers(device))
    except OSError as error:
        raise BundleError(
            "An engine cannot be read.", where=where, found=error, fix="build the bundle again"
        ) from error
    except Exception as error:  # ONNX Runtime raises a dozen classes that share no base.
        raise BundleError(
            "ONNX Runtime refuses an engine.",
            where=where,
            found=f"onnxruntime {ort.__version__}: {error}",
            fix="run `r1v-export verify`; if the bundle is sound, build it again with this onnxruntime",
        ) from error
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise CapabilityError(
            "ONNX Runtime fell back to the CPU.",
            where=where,
            expected="CUDAExecutionProvider",
            found=", ".join(session.get_providers()),
            fix="check the GPU's driver and the CUDA and cuDNN libraries, or use --device cpu",
        )
    return session


def _providers(device: Device) -> list[Any]:
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
