"""What OpenVINO computes in bfloat16 between products of 8 bits."""

from __future__ import annotations

from r1v_export.targets.openvino.library import ov

_IN_BFLOAT16 = "enforceBF16evenForGraphTail"
"""What the CPU plugin calls it: YES, whatever the node is followed by."""


def let_activations_be_bfloat16(model: ov.Model) -> None:
    """Have a tower computed in bfloat16 but for what blocks add up and their normalization.

    OpenVINO leaves in float32 all that an output follows from without a product between, and scales that inputs are
    rounded by are no product: most of a tower is in float32 then, and 24 blocks of InternViT-300M's shape take 1.17
    times as long.
    """
    for node in model.get_ordered_ops():
        if not (_adds_up(node) or _normalizes(node)):
            node.get_rt_info()[_IN_BFLOAT16] = "YES"


def _adds_up(node: ov.Node) -> bool:
    """Whether it adds what a block computes to what it was given."""
    return _type(node) == "Add" and all(_type(each.get_node()) != "Constant" for each in node.input_values())


def _normalizes(node: ov.Node) -> bool:
    if _type(node) == "Multiply":  # by a weight
        return any(_type(each.get_node()) == "MVN" for each in node.input_values())
    return _type(node) == "MVN"


def _type(node: ov.Node) -> str:
    name: str = node.get_type_name()
    return name
