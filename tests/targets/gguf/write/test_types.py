"""Which schemes a GGUF type holds."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from r1v_export.errors import UsageError
from r1v_export.quantization.recipe import Imported, Scheme
from r1v_export.targets.gguf.write.types import KEPT, PLAIN, QUANTIZED, type_of


def test_every_type_of_the_table_is_gguf_pys_and_can_be_read_back() -> None:
    for name in {*PLAIN.values(), *KEPT.values(), *QUANTIZED.values()}:
        kind = gguf.GGMLQuantizationType[name]
        size = gguf.GGML_QUANT_SIZES[kind][1]
        assert gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind).size


@pytest.mark.parametrize(
    ("fields", "what"), [({"pre_quant_scale": True}, "no scale of a linear"), ({"act_order": True}, "no order of")]
)
def test_inputs_that_do_not_come_as_they_are_are_refused(fields, what) -> None:
    weights = Imported(type="int4", granularity="group", group_size=128, algorithm="imported", **fields)
    with pytest.raises(UsageError, match=what):
        type_of("language_model.model.layers.0.mlp.up_proj", Scheme(weights=weights))
