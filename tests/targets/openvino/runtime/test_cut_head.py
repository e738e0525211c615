"""A head as a graph of its own: both together are the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from r1v_export import contract
from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = NEEDS_OPENVINO
WIDTH, WORDS = 16, 40


def decoder(ops: Any, *, biased: bool, rounded: bool, read_twice: bool) -> Any:
    """Two products, the second of which gives logits, behind a sum where it is biased."""
    from r1v_export.targets.openvino.library import ov

    random = np.random.default_rng(0)
    layer, head = (random.standard_normal((WIDTH, columns)).astype(np.float32) for columns in (WIDTH, WORDS))
    value = ops.parameter([1, -1, WIDTH], ov.Type.f32, "x")
    hidden = ops.relu(ops.matmul(value, ops.constant(layer), False, False))
    hidden = ops.add(hidden, hidden) if read_twice else hidden
    if rounded:  # as `multiply_in_bfloat16` rounds, to another type
        product = ops.matmul(ops.convert(hidden, "f16"), ops.constant(head.astype(np.float16)), False, False)
        logits = ops.convert(product, "f32")
    else:
        logits = ops.matmul(hidden, ops.constant(head), False, False)
    if biased:
        logits = ops.add(logits, ops.constant(random.standard_normal(WORDS).astype(np.float32)))
    logits.output(0).set_names({contract.LOGITS})
    return ov.Model([ops.result(logits)], [value])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("read_twice", [False, True])
def test_layers_and_head_give_what_the_whole_gives(biased: bool, rounded: bool, read_twice: bool) -> None:
    from r1v_export.targets.openvino.library import ov
    from r1v_export.targets.openvino.runtime.cut_head import HEAD_INPUT, cut_head

    options = {"biased": biased, "rounded": rounded, "read_twice": read_twice}
    whole, layers = (decoder(ov.opset13, **options) for _ in range(2))
    head = cut_head(layers)
    assert [sorted(port.names) for port in (*layers.outputs, *head.inputs, *head.outputs)] == [
        [HEAD_INPUT],
        [HEAD_INPUT],
        [contract.LOGITS],
    ]
    value = np.random.default_rng(1).standard_normal((1, 3, WIDTH), dtype=np.float32)
    whole, layers, head = (ov.Core().compile_model(each, "CPU") for each in (whole, layers, head))
    expected, found = whole(value)[0], head(layers(value)[0])[0]
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
