"""Which schemes a format of compressed-tensors holds and runtimes compute."""

from __future__ import annotations

import pytest

from r1v_export.errors import UsageError
from r1v_export.quantization.recipe import Scheme
from r1v_export.targets.compressed_tensors.write.formats import format_of

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


@pytest.mark.parametrize(
    ("flag", "what"), [("pre_quant_scale", "no scale of a linear's inputs"), ("act_order", "no longer reads")]
)
def test_what_runtimes_could_not_compute_is_refused(flag, what):
    weights = {**GROUPED, "algorithm": "imported", flag: True}
    with pytest.raises(UsageError, match=what):
        format_of("language_model.lm_head", Scheme.model_validate({"weights": weights}))
