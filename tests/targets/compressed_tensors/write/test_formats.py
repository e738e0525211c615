"""Which schemes a format of compressed-tensors holds and runtimes compute."""

from __future__ import annotations

import pytest

from r1v_export.errors import UsageError
from r1v_export.quantization.recipe import Scheme
from r1v_export.targets.compressed_tensors.write.formats import act_order, format_of

GROUPED = {"type": "int4", "granularity": "group", "group_size": 128}


@pytest.mark.parametrize(
    ("weights", "inputs", "named"),
    [
        (
            {"type": "int4", "granularity": "group", "group_size": 128},
            {"type": "fp8", "mode": "static"},
            "int4 weights",
        ),
        ({"type": "fp8", "granularity": "tensor"}, None, "fp8 weights with 16-bit inputs"),
        ({"type": "int8", "granularity": "channel"}, None, "int8 weights with 16-bit inputs"),
    ],
)
def test_what_no_format_holds_is_refused(weights, inputs, named):
    scheme = Scheme.model_validate({"weights": {**weights, "algorithm": "rtn"}, "inputs": inputs})
    with pytest.raises(UsageError, match=named):
        format_of("language_model.lm_head", scheme)


def test_what_runtimes_could_not_compute_is_refused():
    weights = {**GROUPED, "algorithm": "imported", "pre_quant_scale": True}
    with pytest.raises(UsageError, match="no scale of a linear's inputs"):
        format_of("language_model.lm_head", Scheme.model_validate({"weights": weights}))


@pytest.mark.parametrize(
    ("weights", "declared"),
    [
        ({"algorithm": "imported"}, None),
        ({"algorithm": "imported", "act_order": True}, "group"),
        ({"algorithm": "rtn"}, None),
        ({"algorithm": "gptq", "act_order": "none"}, None),
        ({"algorithm": "gptq"}, "weight"),
        ({"algorithm": "gptq", "act_order": "group"}, "group"),
    ],
)
def test_an_order_is_declared_where_there_is_one(weights, declared):
    assert act_order(Scheme.model_validate({"weights": GROUPED | weights})) == declared
