"""The refusal of schemes whose weights have their columns in an order of their own (GPTQ with act-order in groups)."""

from __future__ import annotations

from r1v_export.errors import UsageError
from r1v_export.quantization.recipe import Gptq, Scheme


def refuse_input_order(holder: str, linear: str, scheme: Scheme) -> None:
    """Refuse a scheme whose groups are no neighboring inputs, for what has no place for their order.

    Args:
        holder: what has none, as the subject of a sentence: "GGUF".
        linear: that the scheme is for.

    Raises:
        UsageError: the scheme has such an order.
    """
    if not scheme.has_input_order:
        return
    holds_it = "--target compressed-tensors, onnxruntime or tensorrt, which hold the order"
    own_recipe = isinstance(scheme.weights, Gptq)
    raise UsageError(
        f"{holder} has no order of a linear's inputs, as GPTQ needs whose groups follow the activations.",
        where=linear,
        expected="groups of neighboring inputs",
        found="act_order: group" if own_recipe else "g_idx in an order of its own",
        fix=f"act_order: static in the recipe; or {holds_it}" if own_recipe else holds_it,
    )
