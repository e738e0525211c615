"""ONNX Runtime sessions whose inputs, outputs and caches stay on the device, for steps.py."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from benchmarks.onnxruntime_cuda_reader import on_cpu
from r1v_export.targets.onnxruntime.graph_message import Model
from r1v_export.targets.onnxruntime.session_options import WEIGHTS_FOLDER, quantization_entries
from r1v_export.targets.onnxruntime.write.graphs import write_graphs

COUNTED = re.compile(r"placed on \[(\w+)\]\. Number of nodes: (\d+)")
PROVIDER = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def preload(device: str) -> None:
    """Load the CUDA libraries that torch brought, which ONNX Runtime's provider needs."""
    if device == "cuda":
        ort.preload_dlls()


def probe(device: str) -> dict[str, Any]:
    """A product on the device, compared with numpy's."""
    preload(device)
    product = helper.make_node("MatMul", ["a", "b"], ["c"])
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64]) for name in "abc"}
    graph = helper.make_graph([product], "product", [tensors["a"], tensors["b"]], [tensors["c"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=[PROVIDER[device]])
    a, b = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    (c,) = session.run(None, {"a": a, "b": b})
    error = float(np.linalg.norm(c - a @ b) / np.linalg.norm(a @ b))
    if session.get_providers()[0] != PROVIDER[device] or not error < 1e-2:
        raise SystemExit(f"{session.get_providers()}: relative error {error}")
    return {"onnxruntime": ort.__version__, "providers": session.get_providers(), "relative_error": error}


def lower_graph(graphs: Path, name: str, device: str, out: Path) -> None:
    """Lower one graph as a build does."""
    write_graphs(graphs, (name,), device, "float32", out)  # type: ignore[arg-type]


class Bound:
    """A session on one graph, everything bound once, on the device.

    Args:
        model: the lowered graph.
        root: what its weights' locations are relative to.
        inputs: name -> array.
        outputs: name -> shape, of the type of the first input.
        caches: past -> (present, array); both are one buffer, updated in place.
        cuda_graph: captured in the first run and replayed.

    Attributes:
        nodes: number of nodes by provider, after ONNX Runtime's own optimization.
        on_cpu: of a session on a GPU, the nodes that are not there.
    """

    def __init__(
        self,
        model: Path,
        root: Path,
        device: str,
        inputs: dict[str, np.ndarray],
        outputs: dict[str, tuple[int, ...]],
        caches: dict[str, tuple[str, np.ndarray]],
        cuda_graph: bool,
    ) -> None:
        preload(device)
        log, self.session = _open(model, root, device, cuda_graph)
        self.nodes = {provider: int(count) for provider, count in COUNTED.findall(log)}
        self.on_cpu = on_cpu(log) if device == "cuda" else []
        self._binding = self.session.io_binding()
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array, device) for name, array in inputs.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        compute = next(iter(inputs.values())).dtype.type
        self._outputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(shape, compute, device) for name, shape in outputs.items()
        }
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        for past, (present, array) in caches.items():
            value = self._values[past] = ort.OrtValue.ortvalue_from_numpy(array, device)
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)

    def run(self) -> None:
        """One run, finished when this returns."""
        self.session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def finite(self) -> bool:
        """Whether every output that is no cache is finite, and not all zeros."""
        arrays = [value.numpy() for value in self._outputs.values()]
        return all(bool(np.isfinite(array).all() and array.any()) for array in arrays)


def _open(model: Path, root: Path, device: str, cuda_graph: bool) -> tuple[str, ort.InferenceSession]:
    """ONNX Runtime's verbose log of opening a session, and the session."""
    options = ort.SessionOptions()
    options.log_severity_level = 0
    content = model.read_bytes()
    for name, value in {WEIGHTS_FOLDER: str(root), **quantization_entries(Model(content))}.items():
        options.add_session_config_entry(name, value)
    provider: Any = (PROVIDER[device], {"enable_cuda_graph": "1"}) if cuda_graph else PROVIDER[device]
    providers = [provider] if device == "cpu" else [provider, PROVIDER["cpu"]]
    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            session = ort.InferenceSession(content, options, providers=providers)
        except Exception as error:
            log.seek(0)
            placed = on_cpu(log.read().decode(errors="replace"))
            raise RuntimeError(f"{error} (not on the GPU: {', '.join(placed) or 'none'})") from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        log.seek(0)
        return log.read().decode(errors="replace"), session
