"""Graphs of the tiny model, run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort


def run(folder, model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    path = folder / "lowered.onnx"
    ir.save(model, path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    results = session.run(None, {name: feeds[name] for name in names})
    return dict(zip([value.name for value in session.get_outputs()], results, strict=True))
