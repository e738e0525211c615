"""Hand-made graphs for the passes, and a way to see that a pass leaves their numbers alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import RemoveUnusedNodesPass

from r1v_export.quantization.apply.onnx import SCALE, QuantizeCache
from r1v_export.quantization.kv_scales import CacheType

RNG = np.random.default_rng(0)


def model(text: str, **initializers: np.ndarray) -> ir.Model:
    """A model from ONNX's text format, with constants by name."""
    made = ir.from_onnx_text(text)
    for name, array in initializers.items():
        value = next(v for node in made.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
        made.graph.register_initializer(value)
    return made


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def operators(made: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in made.graph))


def run(made: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    content = ir.to_proto(made).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def check(made: ir.Model, lowering: ir.passes.InPlacePass, **feeds: np.ndarray) -> ir.Model:
    """Run a pass, see that the outputs stay the same under the same names, and return the lowered model."""
    names, before = [value.name for value in made.graph.outputs], run(made, **feeds)
    ir.passes.Sequential(lowering, RemoveUnusedNodesPass())(made)
    assert [value.name for value in made.graph.outputs] == names
    for old, new in zip(before, run(made, **feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=2e-5)
    return made


def rounded(decoder: ir.Model, layers: int, kind: CacheType) -> ir.Model:
    """A decoder whose keys and values are rounded before they are cached, with a scale for each layer's."""
    QuantizeCache({f"layers.{layer}": kind for layer in range(layers)})(decoder)
    for name, value in decoder.graph.initializers.items():
        if name.endswith(SCALE):
            value.const_value = ir.tensor(np.float32(0.05), name=name)
    return decoder
