"""Two layers of Skywork-R1V3-38B's true width, through the real builder."""

from __future__ import annotations

import pytest

from benchmarks.hollow import export_hollow, spec_38b
from r1v_export import contract
from r1v_export.progress import ignore_progress
from r1v_export.targets.tensorrt.build.parts import PARTS, compiled
from r1v_export.targets.tensorrt.config import TensorRTConfig

SIZES = {"sm": [89, 120], "tile_profiles": [[1, 13]], "capacity": 4096, "max_prefill": 1024, "max_batch": 1}


@pytest.mark.slow
@pytest.mark.parametrize("graph", [contract.VISION, contract.DECODER])
def test_two_layers_of_the_38b_build_with_fused_attention_and_plans_hold_weights_once(graph, library, tmp_path) -> None:
    spec = spec_38b(layers=2, vocabulary=256)
    part = next(part for part in PARTS if part.name == graph)
    (tmp_path / "graphs").mkdir()
    for name in part.graphs:
        export_hollow(name, spec, "int4", tmp_path / "graphs")
    options = TensorRTConfig.model_validate(SIZES)
    info = compiled(library, part, tmp_path / "graphs", options, 32768, (89, 120), tmp_path, ignore_progress)
    assert info.fused_attention
    assert info.plan_bytes < 1.25 * info.weight_bytes
