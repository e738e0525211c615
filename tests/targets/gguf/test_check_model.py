"""Models that llama.cpp computes as others are refused, each by what differs."""

from __future__ import annotations

import pytest

from r1v_export.errors import UsageError
from r1v_export.targets.gguf.check_model import check_model, needs_widening, warnings
from tests.tiny_models import tiny_spec


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ps_version": "v1"}, "pixel shuffle"),
        ({"projector": {"norm_eps": 1e-6}}, "epsilon is fixed"),
        ({"tiling": {"dynamic": False}}, "always cuts"),
        ({"tiling": {"max_tiles": 1}}, "always cuts"),
        ({"tiling": {"use_thumbnail": False}}, "always adds a thumbnail"),
        ({"tiling": {"min_tiles": 2}}, "one tile of images"),
        ({"vision": {"norm": "layer_norm", "qk_norm": True}}, "normalizes queries and keys"),
        (
            {"vision": {"norm": "layer_norm", "qk_norm": False, "hidden_size": 3200, "num_layers": 45}},
            "for one with RMSNorm",
        ),
        ({"vision": {"hidden_size": 1600, "num_layers": 45}}, "would be InternViT-6B's"),
        ({"vision": {"hidden_size": 48}}, "blocks of 32"),
    ],
)
def test_a_model_that_it_computes_as_another_is_refused(changes, what) -> None:
    with pytest.raises(UsageError, match=what):
        check_model(tiny_spec(**changes), {})


def test_internvit_6b_and_towers_with_layer_norm_are_stored_as_they_are() -> None:
    for changes in ({"hidden_size": 3200, "num_layers": 45}, {"norm": "layer_norm", "qk_norm": False}):
        spec = tiny_spec(vision=changes)
        check_model(spec, {})
        assert not needs_widening(spec)
        assert len(warnings(spec)) == 1


def test_another_tower_with_rms_norm_is_widened_and_the_build_says_so() -> None:
    spec = tiny_spec()
    check_model(spec, {})
    assert needs_widening(spec)
    assert "twice as wide" in warnings(spec)[1]
