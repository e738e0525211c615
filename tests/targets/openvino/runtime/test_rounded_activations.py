"""What of a tower with products in 8 bits is in bfloat16, by what OpenVINO says it computes."""

from __future__ import annotations

from collections import defaultdict

import pytest

from r1v_export.cpus import has_bfloat16_products, is_x86
from r1v_export.targets.openvino.target import OpenVinoTarget
from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = [
    NEEDS_OPENVINO,
    pytest.mark.skipif(not (is_x86() and has_bfloat16_products()), reason="no x86 CPU with bfloat16 products"),
]


def test_what_follows_a_product_is_in_bfloat16_and_sums_and_what_normalizes_them_are_not(built, tmp_path) -> None:
    """With LayerNorm and with RMSNorm, for which OpenVINO has operators of different names."""
    OpenVinoTarget().write_images(built.graphs, tmp_path, ("int8",))
    engine = OpenVinoTarget().open_images(tmp_path, built.folder, built.spec, "int8")
    types = defaultdict(set)
    for node in engine._vision.compiled.model.get_runtime_model().get_ops():
        info = node.get_rt_info()
        for name in info["originalLayersNames"].astype(str).split(","):
            types[name].add(info["outputPrecisions"].astype(str))
    block = "vision_model.encoder.layers.1"
    assert types[f"{block}.mlp/Gelu"] == {"bf16"}
    assert types[f"{block}/Add_2"] == {"f32"}, "what it adds to"
    norms = {kind for name, found in types.items() if name.startswith(f"{block}.norm2/") for kind in found}
    assert norms == {"f32"}, "what stands in front of the MLP"
    # What follows the last product of each half of a block is one operator with the sum.
    summed = f"{block}/", f"{block}.norm", f"{block}.attn.proj", f"{block}.mlp.fc2"
    in_float32 = {name for name, found in types.items() if name.startswith(block) and "f32" in found}
    assert not {name for name in in_float32 if not name.startswith(summed)}
