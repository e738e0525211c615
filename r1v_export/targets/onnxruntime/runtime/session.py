"""ONNX Runtime sessions, set up the way they run fastest, on the CPU or on a CUDA GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from r1v_export.config import Device
from r1v_export.count import Count
from r1v_export.cpus import thread_count
from r1v_export.errors import BundleError, CapabilityError, R1VError
from r1v_export.files import GRAPH_LIMIT_BYTES, read_regular_bytes
from r1v_export.log_event import log_event
from r1v_export.opening import Begun
from r1v_export.targets.onnxruntime.doctor import INSTALL_GPU
from r1v_export.targets.onnxruntime.graph_message import Model
from r1v_export.targets.onnxruntime.library import ort
from r1v_export.targets.onnxruntime.runtime.linked_weights import follow_links
from r1v_export.targets.onnxruntime.runtime.optimized_graphs import OptimizedGraph, worth_keeping
from r1v_export.targets.onnxruntime.session_options import (
    MOST_BY_ONE_THREAD_BYTES,
    NO_SPINNING_BETWEEN_RUNS,
    PARALLEL_PREPACK,
    WEIGHTS_FOLDER,
    external_bytes,
    quantization_entries,
)
from r1v_export.user_cache import cache_folder

_LOG = logging.getLogger(__name__)
_LIBRARIES = logging.getLogger("r1v_export.libraries")
"""Disabled where stderr is a log of JSON lines, see `cli.logs`."""
_SPINNING = "session.intra_op.allow_spinning"
_NO_PREPACK = "session.disable_prepacking"
_FATAL, _WARNING, _INFO = 4, 2, 1
"""ONNX Runtime's severities."""


def check_device(device: Device) -> None:
    """Check that the installed ONNX Runtime can run on a device.

    Raises:
        CapabilityError: it cannot.
    """
    available = ort.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in available:
        raise CapabilityError(
            "This ONNX Runtime cannot use a CUDA GPU.",
            where=f"onnxruntime {ort.__version__}",
            expected="CUDAExecutionProvider",
            found=", ".join(available),
            fix=f"{INSTALL_GPU} on a machine with a CUDA GPU, or use --device cpu",
        )


def open_session(
    model: Path | bytes,
    weights_root: Path,
    device: Device,
    threads: int | None = None,
    gpu: int = 0,
    spinning: bool = True,
    keep: bool = False,
    prepack: bool = True,
    alone: bool = False,
    begun: Begun | None = None,
) -> ort.InferenceSession:
    """A session on `model`, whose weights' locations are relative to `weights_root`; any of the files may be a link.

    Args:
        model: an ONNX file or its content.
        threads: that one operator may use, `thread_count()` if None. (ONNX Runtime's own default halves the cores of a
            machine without hyper-threads, and knows no quotas.)
        gpu: which one, of several.
        spinning: let threads wait for the next operator of a run by spinning: faster for small operators, at the cost
            of what else runs.
        keep: keep on disk what is made of an ONNX file with many 4-bit weights, for the next session on a CPU, see
            `optimized_graphs`.
        prepack: bring weights into their kernels' layouts now. Otherwise a kernel does so each time with what it is
            about to multiply: slower, but no second copy of the weights is held.
        alone: let them wait for the next run so, too, for a moment. Waking a thread takes a twentieth of a step of a
            small decoder; but where sampling, delivering or another graph has work meanwhile, it takes a core from it.
        begun: called as soon as ONNX Runtime is at work on the weights, where the process does something else
            meanwhile: few weights are prepared by one thread then, see `PARALLEL_PREPACK`.

    Raises:
        CapabilityError: ONNX Runtime has no such device.
        BundleError: the model or its weights are missing, or ONNX Runtime refuses them.
    """
    check_device(device)
    where = weights_root if isinstance(model, bytes) else model
    threads = threads or thread_count().count
    try:
        content = model if isinstance(model, bytes) else read_regular_bytes(model, GRAPH_LIMIT_BYTES)
        proto = Model(content)
        folder = follow_links(proto, weights_root)
        content = content if folder == weights_root else proto.SerializeToString()
        by_all_threads = begun is None or external_bytes(proto) > MOST_BY_ONE_THREAD_BYTES
        entries = {
            NO_SPINNING_BETWEEN_RUNS: str(int(not alone)),
            _SPINNING: str(int(spinning)),
            PARALLEL_PREPACK: str(int(by_all_threads)),
        }
        entries |= quantization_entries(proto) | ({} if prepack else {_NO_PREPACK: "1"})
        create = partial(_create, threads=threads, entries=entries, providers=_providers(device, gpu), begun=begun)
        cache = cache_folder("onnxruntime") if keep and device == "cpu" else None
        if cache and isinstance(model, Path) and worth_keeping(proto):
            session = OptimizedGraph(cache, model, proto, content, folder, entries).open(create)
        else:
            session = create(content, folder)
    except R1VError:
        raise
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
    _require_cuda(session, device, where)
    message, providers = "%(graph)s: %(providers)s, %(threads)s", ", ".join(session.get_providers())
    log_event(_LOG, logging.INFO, message, graph=where, providers=providers, threads=Count(threads, "thread"))
    return session


def _create(
    content: bytes,
    weights_folder: Path,
    change: Callable[[ort.SessionOptions], None] = lambda _: None,
    *,
    threads: int,
    entries: Mapping[str, str],
    providers: list[Any],
    begun: Begun | None,
) -> ort.InferenceSession:
    """A session on a graph as ONNX Runtime opens it.

    Args:
        change: of the options, before the session is made.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _log_severity()
    ort.set_default_logger_severity(options.log_severity_level)
    for name, value in {WEIGHTS_FOLDER: str(weights_folder), **entries}.items():
        options.add_session_config_entry(name, value)
    change(options)
    return ort.InferenceSession(content, options, providers=providers, disabled_optimizers=_none_of_them(begun))


def _none_of_them(begun: Begun | None) -> Iterator[str]:
    """No names of optimizers. ONNX Runtime reads them when it has read the graph, and goes on without Python's lock."""
    if begun is not None:
        begun()
    yield from ()


def _require_cuda(session: ort.InferenceSession, device: Device, where: object) -> None:
    """
    Raises:
        CapabilityError: a session for a GPU is not on it.
    """
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise CapabilityError(
            "ONNX Runtime fell back to the CPU.",
            where=where,
            expected="CUDAExecutionProvider",
            found=", ".join(session.get_providers()),
            fix="check the GPU's driver and the CUDA and cuDNN libraries, or use --device cpu",
        )


def _log_severity() -> int:
    """What ONNX Runtime may write to stderr by itself, as text: errors are raised too, warnings are for `-v`."""
    if _LIBRARIES.isEnabledFor(logging.DEBUG):
        return _INFO
    return _WARNING if _LIBRARIES.isEnabledFor(logging.INFO) else _FATAL


def _providers(device: Device, gpu: int) -> list[Any]:
    cuda = [("CUDAExecutionProvider", {"device_id": gpu})] if device == "cuda" else []
    return [*cuda, "CPUExecutionProvider"]
