"""What of a tower with products in 8 bits is in bfloat16, by what OpenVINO says it computes."""

from __future__ import annotations

from collections import defaultdict

import pytest

from r1v_export.targets.openvino.target import OpenVinoTarget
from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = NEEDS_OPENVINO


def test_all_but_sums_of_blocks_and_what_normalizes_them_is_in_bfloat16(r1v, tmp_path) -> None:
    from r1v_export.targets.openvino.doctor import has_bfloat16

    if not has_bfloat16():
        pytest.skip("this CPU has no bfloat16 products")
    OpenVinoTarget().write_images(r1v.graphs, tmp_path, ("int8",))
    engine = OpenVinoTarget().open_images(tmp_path, r1v.folder, r1v.spec, "int8")
    types = defaultdict(set)
    for node in engine._vision.compiled.model.get_runtime_model().get_ops():
        info = node.get_rt_info()
        for name in str(info["originalLayersNames"].astype(str)).split(","):
            types[name].add(info["outputPrecisions"].astype(str))
    block = "vision_model.encoder.layers.1"
    assert types[f"{block}.mlp/Gelu"] == {"bf16"}
    assert types[f"{block}/Add_2"] == {"f32"}, "what it adds to"
    in_float32 = {name for name, found in types.items() if name.startswith(block) and "f32" in found}
    # What follows the last product of each half of a block is one operator with the sum.
    summed = f"{block}/", f"{block}.norm", f"{block}.attn.proj", f"{block}.mlp.fc2"
    assert not {name for name in in_float32 if not name.startswith(summed)}
