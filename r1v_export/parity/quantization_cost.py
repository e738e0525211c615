"""What a quantized engine loses against the original model, in words: in which layers most, and what loses less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from r1v_export.parity.metrics import Statistics, TensorStatistics
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.schema import CalibrationFacts
from r1v_export.parity.tolerances import Boundary, tolerances

OTHER_RECIPES: Mapping[str, str] = {
    "int4-rtn": "int4-gptq or int4-awq, which read calibration samples",
    "int4-awq": "int4-gptq",
    "int4-gptq": "int4-awq",
    "int4-kv": "int4-gptq, without a quantized key-value cache",
    "w4a8": "int4-awq, which rounds no inputs",
    "fp8-tensor": "fp8, with a scale for each output channel",
    "fp8": "fp8-rowwise, with an input scale for each token",
    "fp8-rowwise": "fp8, or int8-smoothquant",
    "fp8-kv": "fp8, without a quantized key-value cache",
    "int8-smoothquant": "fp8",
    "int8-kv": "int8-smoothquant, without a quantized key-value cache",
    "mixed": "fp8",
}
"""Shipped recipe -> what to try in its place."""

_LAYERS_BEFORE: Mapping[Boundary, tuple[Boundary, str]] = {
    "vision": ("vision_block", "vision_model.*"),
    "vision_block": ("vision_block", "vision_model.*"),
    "prefill": ("decoder_layer", "language_model.*"),
    "decode": ("decoder_layer", "language_model.*"),
}
"""Boundary -> the layers whose error it shows, and a pattern of a recipe for their linears."""

_SHOWN_LAYERS = 3

OWN_ANSWERS = (
    "compare on the model's own answers, where there is memory for the whole model: --gate whole decides; on a given "
    "reply, as here, a model that would not say it can lose more"
)

Rise = tuple[int, float, float]
"""A layer, and the relative error before and behind it."""


def cost_causes(kind: Boundary, found_by_name: Mapping[str, Statistics], options: CheckOptions) -> tuple[str, ...]:
    """Where a loss comes from that is larger than its limit.

    Args:
        kind: of the first boundary out of tolerance.
        found_by_name: the statistics of all boundaries.
    """
    if options.own_weights is not None:
        rounding = (
            "the target's own rounding of weights costs this, if its files are right: there is no model rounded in the "
            "same way to compare with"
        )
    else:
        recipe = f" by the recipe {options.calibration.recipe}" if options.calibration else ""
        rounding = (
            f"quantizing{recipe} costs this: the reference is the original model; the gate arithmetic compares with "
            "the quantized one"
        )
    return (rounding, *_largest_losses(kind, found_by_name), *_measured_alone(options.calibration))


def next_steps(
    kind: Boundary, found_by_name: Mapping[str, Statistics], options: CheckOptions, given_reply: bool = False
) -> tuple[str, ...]:
    """What shows whether the loss matters, and what loses less, by options that there are.

    Args:
        kind: as of `cost_causes`, and the next two.
        given_reply: the decoded tokens are no answer of the model, as in a streamed gate.
    """
    own_answers = (OWN_ANSWERS,) if given_reply and kind == "decode" else ()
    if options.own_weights is not None:
        return (*own_answers, "choose a type of more bits in the target's block of the build file")
    return (*own_answers, *_next_steps(kind, found_by_name, options))


def _next_steps(kind: Boundary, found_by_name: Mapping[str, Statistics], options: CheckOptions) -> Iterator[str]:
    facts = options.calibration
    other = OTHER_RECIPES.get(facts.recipe) if facts else None
    yield f"try another recipe: {other or 'r1v-export recipes list'}"
    if facts and facts.samples:
        yield f"calibrate on more samples than {facts.samples}, or on ones like those in use: --samples, --calib"
    if facts and facts.sensitivity and facts.sensitivity.selection:
        yield f"set a lower divergence or a larger size than --budget {facts.sensitivity.selection.budget}"
    else:
        limit = next(row.bound for row in tolerances("decode", options.profile) if row.metric == "mean_kl")
        yield f"keep in 8 or 16 bits what loses most in 4 or 8: --budget kl={limit:g} measures it and chooses"
    yield from _own_recipe(kind, found_by_name)
    more_bits = "fp8 or int8" if options.precision == "int4" else "fp16 or bf16"
    yield f"take more bits: --precision {more_bits}, which the target has"


def _own_recipe(kind: Boundary, found_by_name: Mapping[str, Statistics]) -> Iterator[str]:
    """A recipe in which the layers that lose most are not quantized; how these are found where they are not known."""
    if kind not in _LAYERS_BEFORE:
        return
    layer, modules = _LAYERS_BEFORE[kind]
    if rises := _rises(layer, found_by_name):
        layers = sorted(index for index, _, _ in rises[:_SHOWN_LAYERS])
        yield (
            f'leave the layers that lose most in 16 bits, by a last rule in a recipe file: modules "{modules}", '
            f"layers {layers}, scheme null; such a rule: r1v-export recipes show mixed"
        )
    else:
        yield "find the layers that lose most: r1v-export check BUNDLE --gate streamed compares behind each of them"


def _largest_losses(kind: Boundary, found_by_name: Mapping[str, Statistics]) -> Iterator[str]:
    layer = _LAYERS_BEFORE.get(kind, ("",))[0]
    if rises := _rises(layer, found_by_name)[:_SHOWN_LAYERS]:
        shown = ", ".join(f"{layer}.{index} ({before:.2g} to {behind:.2g})" for index, before, behind in rises)
        yield f"the relative error rises most in {shown}"


def _rises(layer: str, found_by_name: Mapping[str, Statistics]) -> list[Rise]:
    """The layers of a kind behind which the error is larger than before, the largest rise first."""
    errors = {
        int(name.partition(".")[2]): statistics.relative_error
        for name, statistics in found_by_name.items()
        if name.partition(".")[0] == layer and isinstance(statistics, TensorStatistics)
    }
    behind = [(-1, 0.0), *sorted(errors.items())]
    rises = [(index, before, after) for (_, before), (index, after) in pairwise(behind) if after > before]
    return sorted(rises, key=lambda rise: rise[1] - rise[2])


def _measured_alone(calibration: CalibrationFacts | None) -> Iterator[str]:
    """What a budget's measurements say: the chosen precisions that alone cost most."""
    table = calibration.sensitivity if calibration else None
    chosen = table.selection.precisions if table and table.selection else {}
    costs = [
        (option.kl, option.module, option.precision)
        for option in (table.options if table else ())
        if option.kl is not None and chosen.get(option.module) == option.precision
    ]
    if costs := sorted(costs, reverse=True)[:_SHOWN_LAYERS]:
        shown = ", ".join(f"{module} in {precision} ({kl:.2g} nats)" for kl, module, precision in costs)
        yield f"quantized alone, most is lost in {shown}"
