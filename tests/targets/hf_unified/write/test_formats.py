"""Which schemes the layout of unified checkpoints holds."""

from __future__ import annotations

import pytest

from r1v_export.errors import UsageError
from r1v_export.quantization.recipe import Scheme
from r1v_export.targets.hf_unified.write.formats import algorithm_of


@pytest.mark.parametrize(
    ("weights", "inputs", "named"),
    [
        ({"type": "uint4", "granularity": "group", "group_size": 128}, None, "uint4"),
        ({"type": "int8", "granularity": "channel"}, {"type": "int8", "mode": "static"}, "int8"),
        ({"type": "fp8", "granularity": "channel"}, {"type": "fp8", "mode": "static"}, "fp8 weights per channel"),
        ({"type": "fp8", "granularity": "tensor"}, None, "fp8 weights per tensor"),
    ],
)
def test_what_the_layout_does_not_hold_is_refused(weights, inputs, named):
    scheme = Scheme.model_validate({"weights": weights | {"algorithm": "rtn"}, "inputs": inputs})
    with pytest.raises(UsageError) as caught:
        algorithm_of("language_model.model.layers.0.mlp.up_proj", scheme)
    assert named in caught.value.found
    assert "--recipe" in caught.value.fix or "recipe" in caught.value.fix
