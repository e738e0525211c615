"""Two graphs joined compute what they do one after the other, in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from r1v_export import contract
from r1v_export.targets.tensorrt.concatenate_graphs import concatenate_graphs
from tests.targets.tensorrt.graphs import run


def test_vision_and_projector_joined_give_both_results(graphs) -> None:
    pixels = np.random.default_rng(1).standard_normal((2, 3, 56, 56), dtype=np.float32)
    features = run(graphs, ir.load(graphs / "vision.onnx"), {contract.PIXEL_VALUES: pixels})
    expected = features | run(graphs, ir.load(graphs / "projector.onnx"), features)
    both = concatenate_graphs(ir.load(graphs / "vision.onnx"), ir.load(graphs / "projector.onnx"), "vision")
    found = run(graphs, both, {contract.PIXEL_VALUES: pixels})
    assert list(found) == [contract.VISION_FEATURES, contract.IMAGE_EMBEDS]
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)


def test_graphs_that_do_not_follow_each_other_are_not_joined(graphs) -> None:
    with pytest.raises(ir.passes.PreconditionError, match="inputs"):
        concatenate_graphs(ir.load(graphs / "projector.onnx"), ir.load(graphs / "decoder.onnx"), "odd")
