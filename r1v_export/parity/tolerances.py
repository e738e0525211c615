"""The tolerance table: how far an engine may be from the reference at each boundary, and why.

One row is one limit on one metric. Rows are looked up by boundary and by standard; standards are for one of two gates:

* `numerics`: the same numbers computed by another engine. The reference is the model that the engine was built
  from, in float32 (for a quantized engine: its fake-quantized model); only rounding may differ. What rounds is the
  dtype computed in or, coarser than any, inputs on an 8-bit grid.
* `images`: the same, of an engine whose images another part encodes, by the limits of what that one rounds.
* `quantization`: a quantized model against the float32 original; what quantizing costs, by precision.

Unit roundoff u: 2^-24 (6e-8) for float32, 2^-11 (4.9e-4) for float16, 2^-9 (2.0e-3) for bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import StringConstraints, model_validator

from r1v_export.config import Compute, Precision
from r1v_export.errors import UsageError
from r1v_export.strict import StrictModel

Gate = Literal["arithmetic", "quantization", "images", "decoder"]
ToleranceProfile = Literal[
    "fp32", "fp16", "bf16", "8-bit inputs", "fp8", "int8", "int4", "8-bit weights", "4-bit weights"
]
"""The first four hold arithmetic, the others what quantizing costs; the last two where a target rounds weights by
itself, embeddings included."""
Boundary = Literal[
    "pixels",
    "prompt",
    "vision_block",
    "vision",
    "projector",
    "embeds",
    "decoder_layer",
    "prefill",
    "decode",
    "end_to_end",
    "tokens",
]

Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=20)]


class Tolerance(StrictModel):
    """One limit: exactly one of `at_most` and `at_least`, and the reason for its value."""

    boundary: Boundary
    profile: ToleranceProfile
    metric: str
    at_most: float | None = None
    at_least: float | None = None
    near_tie: float | None = None
    """Of `top1_agreement`: tokens whose logits in the reference are at most this far apart may change places."""
    reason: Reason

    @model_validator(mode="after")
    def _one_bound(self) -> Tolerance:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a limit has exactly one of at_most and at_least")
        if self.near_tie is not None and self.metric != "top1_agreement":
            raise ValueError("only top1_agreement has near ties")
        return self

    @property
    def relation(self) -> Literal["at most", "at least"]:
        """How a value is compared with the bound: "at least" for a lower one, otherwise "at most"."""
        return "at least" if self.at_most is None else "at most"

    @property
    def bound(self) -> float:
        """The value of whichever of `at_most` and `at_least` is given."""
        (bound,) = (value for value in (self.at_most, self.at_least) if value is not None)
        return bound

    def holds(self, value: float) -> bool:
        """Whether the metric's value is within the limit; NaN never is."""
        return value <= self.bound if self.relation == "at most" else value >= self.bound


def tolerances(boundary: Boundary, profile: ToleranceProfile) -> tuple[Tolerance, ...]:
    """The rows of the table for one boundary."""
    return tuple(row for row in TABLE if (row.boundary, row.profile) == (boundary, profile))


def profile_for(gate: Gate, precision: Precision, compute: Compute, quantized_inputs: bool) -> ToleranceProfile:
    """Return the limits for an engine.

    Args:
        precision: that the engine was built in.
        compute: what it computes in, around whatever is quantized.
        quantized_inputs: whether any linear rounds its input to 8 bits too.

    Raises:
        UsageError: the table has no such rows, so the engine cannot be evaluated.
    """
    if gate != "quantization":
        return "8-bit inputs" if quantized_inputs else _FLOATS[compute]
    costs = {row.profile for row in TABLE} - set(ARITHMETIC)
    if precision not in costs:
        raise UsageError(
            f"Parity has no tolerances for what quantizing to {precision} costs.",
            expected=" or ".join(sorted(costs)),
            found=precision,
            fix="add rows with reasons to parity/tolerances.py",
        )
    return precision


_FLOATS: dict[Compute, ToleranceProfile] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
ARITHMETIC: tuple[ToleranceProfile, ...] = (*_FLOATS.values(), "8-bit inputs")
"""The standards of the arithmetic gate."""


def _exact_inputs(profile: ToleranceProfile) -> Iterable[Tolerance]:
    yield Tolerance(
        boundary="pixels",
        profile=profile,
        metric="max_abs_error",
        at_most=0.0,
        reason="Tiling and normalizing are the same code on both sides and no engine takes part: nothing may differ.",
    )
    yield Tolerance(
        boundary="prompt",
        profile=profile,
        metric="token_agreement",
        at_least=1.0,
        reason="Token ids are whole numbers from the tokenizer files: one other id is another question.",
    )


def _same(
    profile: ToleranceProfile,
    boundaries: Iterable[Boundary],
    metric: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    near_tie: float | None = None,
    reason: str,
) -> Iterable[Tolerance]:
    """One limit, the same at several boundaries."""
    for boundary in boundaries:
        yield Tolerance(
            boundary=boundary,
            profile=profile,
            metric=metric,
            at_most=at_most,
            at_least=at_least,
            near_tie=near_tie,
            reason=reason,
        )


def _logit_error(kl: float) -> float:
    """The error in logits that a limit on the divergence stands for, as KL <= error^2 / 2 nats."""
    return float(f"{math.sqrt(2 * kl):.2g}")


_FEATURES: tuple[Boundary, ...] = ("vision_block", "vision", "projector")
_HIDDEN_STATES: tuple[Boundary, ...] = (*_FEATURES, "decoder_layer")
_LOGITS: tuple[Boundary, ...] = ("prefill", "decode", "end_to_end")

_FP32 = (
    *_exact_inputs("fp32"),
    *_same(
        "fp32",
        ("decoder_layer",),
        "relative_error",
        at_most=1e-4,
        reason="Only the order of sums differs, of up to 27,648 products: 3.3e-6 behind one layer, 4.5e-6 behind two "
        "of the 38B model's width, which a random walk takes to 3e-5 over its 64. A wrong epsilon or angle is outside.",
    ),
    *_same(
        "fp32",
        _FEATURES,
        "relative_error",
        at_most=1e-5,
        reason="Only the order of sums differs: 3e-7 is measured over 4 ViT blocks, 8e-7 over 45. A GELU by tanh "
        "instead of erf (4e-5 to 1e-4) or a wrong epsilon in the tower (9e-5) is outside.",
    ),
    Tolerance(
        boundary="embeds",
        profile="fp32",
        metric="max_abs_error",
        at_most=0.0,
        reason="A lookup and a copy; bfloat16 and float16 weights widen to float32 without rounding.",
    ),
    *_same(
        "fp32",
        _LOGITS,
        "max_abs_error",
        at_most=1e-3,
        reason="The project's promise for float32. Logits are tens in size, rounding gives about 1e-5; 1e-3 cannot "
        "change a probability by more than 0.2 %.",
    ),
    *_same(
        "fp32",
        _LOGITS,
        "max_kl",
        at_most=5e-7,
        reason="What an error of 1e-3 in every logit can amount to at most: half the square of that error, in nats.",
    ),
    *_same(
        "fp32",
        ("prefill", "decode"),
        "top1_agreement",
        at_least=1.0,
        near_tie=1e-3,
        reason="Given the same history, a greedy choice may only change where the two best logits are closer than the "
        "limit on their error, which trained models do not produce.",
    ),
    Tolerance(
        boundary="tokens",
        profile="fp32",
        metric="token_agreement",
        at_least=1.0,
        reason="The project's promise for float32: run end to end, the engine writes the same answer, token by token.",
    ),
)


def _sixteen_bit(
    profile: ToleranceProfile,
    roundoff: str,
    measured: str,
    lookup: float,
    feature: float,
    cosine: float,
    kl: float,
    agreement: float,
) -> tuple[Tolerance, ...]:
    """Rows of a 16-bit float: relative limits in features, probabilities instead of raw logits."""
    return (
        *_exact_inputs(profile),
        *_same(
            profile,
            _HIDDEN_STATES,
            "relative_error",
            at_most=feature,
            reason=f"20 unit roundoffs of {roundoff}; {measured} are measured over 45 ViT blocks. Every operator "
            "rounds its output, and the errors add up like a random walk over the depth.",
        ),
        *_same(
            profile,
            _FEATURES,
            "min_row_cosine",
            at_least=cosine,
            reason="The worst token, not the average one: an overflow or a naive cast ruins single tokens first "
            "(a naive float16 vision tower was measured at 0.14, a strongly typed one at 0.9997).",
        ),
        Tolerance(
            boundary="embeds",
            profile=profile,
            metric="max_relative_error",
            at_most=lookup,
            reason=f"A lookup and a copy: one rounding to {roundoff} of the image embeddings, none of the table's.",
        ),
        *_same(
            profile,
            _LOGITS,
            "mean_kl",
            at_most=kl,
            reason="Logits round to 16 bits, so raw errors grow with their size and say little; this is what the "
            "rounding does to the next token's distribution, and is well below what quantizing costs.",
        ),
        *_same(
            profile,
            ("prefill", "decode"),
            "top1_agreement",
            at_least=agreement,
            near_tie=_logit_error(kl),
            reason="Given the same history, rounding may flip a greedy choice only at near ties: within the error in "
            "logits whose square, halved, is the limit on the divergence in nats.",
        ),
    )


_FP16 = _sixteen_bit("fp16", "2^-11", "4", lookup=5e-4, feature=1e-2, cosine=0.999, kl=1e-4, agreement=0.995)
_BF16 = _sixteen_bit("bf16", "2^-9", "10", lookup=4e-3, feature=4e-2, cosine=0.99, kl=2e-3, agreement=0.98)


def _lookup(profile: ToleranceProfile) -> Iterable[Tolerance]:
    return _same(
        profile,
        ("embeds",),
        "max_relative_error",
        at_most=4e-3,
        reason="Embeddings are not quantized: a lookup and a copy, with one rounding where 16-bit floats surround the "
        "quantized products.",
    )


_EIGHT_BIT_INPUTS = (
    *_exact_inputs("8-bit inputs"),
    *_same(
        "8-bit inputs",
        _FEATURES,
        "relative_error",
        at_most=3e-2,
        reason="An input on the edge between two quantized values is rounded to either for a difference of 1e-7 "
        "before it, and each block adds its own such errors: between float32 and float64, 7e-5 after one ViT block "
        "and 2e-3 after four are measured with inputs in FP8. A tower that is not quantized differs by its type's "
        "rounding: on r1v-nano 3e-7 in float32, 2e-3 in bfloat16, 6e-3 in 8 bits. A wrong scale: 0.1 and more.",
    ),
    *_lookup("8-bit inputs"),
    *_same(
        "8-bit inputs",
        _LOGITS,
        "mean_kl",
        at_most=5e-3,
        reason="The same edges, as what they do to the next token's distribution: 2e-3 nats end to end is measured "
        "between float32 and float64; a tenth of what quantizing itself may cost is allowed.",
    ),
    *_same(
        "8-bit inputs",
        ("prefill", "decode"),
        "top1_agreement",
        at_least=0.98,
        near_tie=_logit_error(5e-3),
        reason="Given the same history, a value that is rounded the other way may flip a greedy choice only at "
        "near ties: within the error in logits whose square, halved, is the limit on the divergence in nats. A "
        "random decoder of 64 layers differs by 3e-2 from itself when its input moves by one unit in the last place.",
    ),
)


def _rounded_lookup(profile: ToleranceProfile, cosine: float, measured: str) -> Iterable[Tolerance]:
    return _same(
        profile,
        ("embeds",),
        "min_row_cosine",
        at_least=cosine,
        reason=f"The worst of all tokens, each a row that was rounded on its own: {measured}.",
    )


def _cost(
    profile: ToleranceProfile, kl: float, agreement: float, why: str, tower: str, lookup: Iterable[Tolerance]
) -> tuple[Tolerance, ...]:
    """Rows of a quantized engine against the float32 original: what quantizing may cost."""
    return (
        *_exact_inputs(profile),
        *lookup,
        *_same(
            profile,
            _FEATURES,
            "min_row_cosine",
            at_least=0.98,
            reason=f"The worst token: {tower}. A wrong scale there turns tokens away long before answers change.",
        ),
        *_same(
            profile,
            ("prefill", "decode"),
            "mean_kl",
            at_most=kl,
            reason=f"What {why} may do to the next token's distribution, in nats. A shuffled or corrupted scale "
            "costs whole nats.",
        ),
        *_same(
            profile,
            ("prefill", "decode"),
            "top1_agreement",
            at_least=agreement,
            reason=f"Given the same history, {why} may change a greedy choice only where the original was unsure.",
        ),
    )


_MEASURED = "above 0.995 is measured on r1v-nano"
_FP8 = _cost("fp8", 5e-2, 0.97, "rounding weights and inputs to FP8", f"{_MEASURED} in FP8", _lookup("fp8"))
_INT8 = _cost("int8", 5e-2, 0.97, "rounding weights and inputs to INT8", f"{_MEASURED} in INT8", _lookup("int8"))
_INT4_TOWER = f"recipes of INT4 leave the tower as it is or take 8 bits ({_MEASURED}); a budget may take 4 there"
_INT4 = _cost("int4", 1e-1, 0.95, "rounding weights to 4 bits", _INT4_TOWER, _lookup("int4"))
_OWN_TOWER = f"the tower keeps 16 bits, or has 8 with 32 values to a scale; with coarser scales, {_MEASURED}"
_8_BIT_WEIGHTS = _cost(
    "8-bit weights",
    5e-2,
    0.97,
    "rounding weights to 8 bits",
    _OWN_TOWER,
    _rounded_lookup("8-bit weights", 0.9999, "0.99998 is measured in 8 bits, 32 values to a scale"),
)
_4_BIT_WEIGHTS = _cost(
    "4-bit weights",
    1e-1,
    0.95,
    "rounding weights to 4 bits",
    _OWN_TOWER,
    _rounded_lookup("4-bit weights", 0.98, "0.996 is measured in 4 bits, 32 values to a scale"),
)

TABLE: tuple[Tolerance, ...] = (
    *(*_FP32, *_FP16, *_BF16, *_EIGHT_BIT_INPUTS),
    *(*_FP8, *_INT8, *_INT4, *_8_BIT_WEIGHTS, *_4_BIT_WEIGHTS),
)
