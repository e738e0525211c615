"""A decoder's head as a graph of its own, so that several graphs of the decoder share it.

It is the largest product of a small model, with a quarter of all 4-bit weights in one of 0.5B and twice that in 8 bits.
Graphs that round differently may well have the same one: nothing but logits comes from it.
"""

from __future__ import annotations

from typing import Any

from r1v_export import contract
from r1v_export.targets.openvino.library import ov

HEAD_INPUT = "head_input"
"""What the head multiplies, [1, W, E] float32: an output of the layers' graph, the head's one input."""


def cut_head(model: ov.Model) -> ov.Model:
    """Let a decoder end in what its last product multiplies, float32, and return that product and what follows it."""
    ops: Any = ov.opset13
    logits = first = model.output(contract.LOGITS).get_node()
    while first.get_type_name() != "MatMul":
        first = first.input_value(0).get_node()
    while (before := first.input_value(0).get_node()).get_type_name() == "Convert":  # to what the product rounds to
        first = before
    value = first.input_value(0)
    assert value.get_element_type() == ov.Type.f32
    parameter = ops.parameter(value.get_partial_shape(), value.get_element_type(), HEAD_INPUT)
    first.input(0).replace_source_output(parameter.output(0))
    parameter.output(0).set_names({HEAD_INPUT})
    model.remove_result(logits)
    value.set_names({HEAD_INPUT})
    model.add_results([ops.result(value)])
    return ov.Model([logits], [parameter])
