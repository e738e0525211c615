"""A checkpoint that was quantized already cannot be given another recipe."""

from __future__ import annotations

from r1v_export.quantization.recipe import Scheme, load
from r1v_export.targets.other_quantization import other_quantization


def test_a_quantized_checkpoint_is_not_sent_to_another_recipe():
    weights = {"type": "uint4", "granularity": "group", "group_size": 128, "algorithm": "imported"}
    imported = Scheme.model_validate({"weights": weights})
    assert "another target" in other_quantization(imported, "another recipe")
    own = next(rule.scheme for rule in load("int4-rtn").rules if rule.scheme is not None)
    assert other_quantization(own, "another recipe") == "another recipe"
