"""A graph that lies in memory, opened by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort


def session(model: ir.Model, folder: Path) -> ort.InferenceSession:
    """A session on a graph whose weights lie in a folder."""
    path = folder / "of-this-test.onnx"
    ir.save(model, path)
    opened = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    path.unlink()
    return opened
