"""What to do about a quantization that a target does not hold."""

from __future__ import annotations

from r1v_export.quantization.recipe import Imported, Scheme


def other_quantization(scheme: Scheme, recipes: str) -> str:
    """The `fix` of such a refusal.

    Args:
        scheme: that the target does not hold.
        recipes: what helps where the model is quantized here; a checkpoint that was quantized already keeps its values.
    """
    if not isinstance(scheme.weights, Imported):
        return recipes
    return (
        "another target: the checkpoint's own quantized values are kept; docs/hf_unified.md, Building from one, has "
        "the targets for each"
    )
