from __future__ import annotations

import numpy as np
import onnx
import pytest

from r1v_export.errors import CapabilityError
from r1v_export.targets.onnxruntime.runtime.vision_blocks import with_vision_blocks

RNG = np.random.default_rng(0)


def test_every_vit_block_is_shown_as_pytorch_computes_it(built):
    size = built.spec.tiling.tile_size
    pixels = RNG.normal(size=(3, 3, size, size)).astype(np.float32)
    expected, found = (list(engine.vision_blocks(pixels)) for engine in (built.reference, built.open()))
    assert len(found) == built.spec.vision.num_layers
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_graph_whose_blocks_were_fused_away_says_so(copy):
    file = copy.engine_folder / "vision.onnx"
    model = onnx.load(file, load_external_data=False)
    del model.graph.value_info[:]
    onnx.save(model, file)
    with pytest.raises(CapabilityError, match=r"vision_block\.0"):
        with_vision_blocks(file)
