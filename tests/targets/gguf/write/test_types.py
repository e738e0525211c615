"""Which schemes a GGUF type holds."""

from __future__ import annotations

from typing import get_args

import gguf
import numpy as np
import pytest

from r1v_export.errors import UsageError
from r1v_export.quantization.recipe import Imported, Scheme
from r1v_export.targets.gguf.runtime.files import INPUTS_PER_SCALE
from r1v_export.targets.gguf.write.types import KEPT, PLAIN, QUANTIZED, GgufType, type_of


def test_every_type_of_the_table_is_gguf_pys_and_can_be_read_back() -> None:
    assert {*PLAIN.values(), *KEPT.values(), *QUANTIZED.values()} <= set(get_args(GgufType))
    for name in get_args(GgufType):
        kind = gguf.GGMLQuantizationType[name]
        size = gguf.GGML_QUANT_SIZES[kind][1]
        assert gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind).size


def test_inputs_share_a_scale_as_the_blocks_of_each_quantized_type_do() -> None:
    sizes = {name: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0] for name in get_args(GgufType)}
    assert {name: size for name, size in sizes.items() if size > 1} == INPUTS_PER_SCALE


@pytest.mark.parametrize(
    ("fields", "what"),
    [({"pre_quant_scale": True}, "no scale of a linear"), ({"act_order": True}, "no order of a linear's inputs")],
)
def test_inputs_that_do_not_come_as_they_are_are_refused(fields, what) -> None:
    weights = Imported(type="int4", granularity="group", group_size=128, algorithm="imported", **fields)
    with pytest.raises(UsageError, match=what):
        type_of("language_model.model.layers.0.mlp.up_proj", Scheme(weights=weights))
