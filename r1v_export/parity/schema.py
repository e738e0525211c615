"""What `report/parity.json` holds: strict, frozen, and the same bytes for the same comparison.

No paths or host names; latencies only where they were asked for, a date and a command as typed only of `check`. Reports
of earlier versions are read: fields that came later have defaults, and none was taken away. Numbers are rounded to six
significant digits; infinities are the strings "Infinity" and "-Infinity".
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from r1v_export.config import Compute, Precision
from r1v_export.count import Count
from r1v_export.errors import ParityError
from r1v_export.parity.provenance import Provenance
from r1v_export.parity.rounded_inputs import RoundedInputs
from r1v_export.parity.tolerances import Gate, ToleranceProfile
from r1v_export.quantization.mixed_precision.sensitivity import SensitivityTable
from r1v_export.strict import StrictModel


def _round_significant(value: float) -> float:
    return float(f"{value:.6g}")


Number = Annotated[float, AfterValidator(_round_significant)]


class _Part(StrictModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")


class Check(_Part):
    """One metric compared with one limit of the tolerance table."""

    metric: str
    value: Number
    relation: Literal["at most", "at least"]
    limit: Number
    passed: bool
    reason: str
    near_ties: int = 0
    """Greedy choices that differ between tokens whose logits in the reference are at most `near_tie` apart: they count
    as agreement in `value`, not in the boundary's `metrics`."""
    near_tie: Number | None = None


class WorstElement(_Part):
    """Where the largest error is, or the first NaN or infinity."""

    sample: str
    index: tuple[int, ...]
    reference: Number
    candidate: Number


class BoundaryResult(_Part):
    """One boundary of the data flow. Without checks (no limit in the table) it is reported and passes."""

    name: str
    compared: str
    """What was compared, in words."""
    metrics: dict[str, Number]
    checks: tuple[Check, ...]
    worst: WorstElement | None = None
    problem: str | None = None
    """Other shapes, NaN or infinities, in words."""

    @property
    def passed(self) -> bool:
        """Whether all metrics are within their limits."""
        return all(check.passed for check in self.checks)


class StepResult(_Part):
    """Teacher-forced logits of one decode step, over the samples whose answer is that long."""

    step: int
    samples: int
    max_abs_error: Number
    mean_kl: Number


class Divergence(_Part):
    """Where two greedy answers part."""

    position: int
    """Index of the first differing token among the generated ones."""
    agreed: str
    reference_token: str
    candidate_token: str
    """Empty after that endpoint's answer has ended."""
    candidate_rest: str
    reference_rest: str
    margin: Number
    """Reference's largest logit less its second largest at that token: near 0 is a near tie."""


class SampleResult(_Part):
    """One question and both greedy answers."""

    name: str
    question: str
    expected: str | None = None
    """The right answer, where it is known."""
    reference: str
    candidate: str | None = None
    """None where it is the reference's, token by token."""
    tokens: int
    """Tokens that the reference generated."""
    reference_correct: bool | None = None
    candidate_correct: bool | None = None
    divergence: Divergence | None = None
    thumbnails_png: tuple[bytes, ...] = Field(default=(), exclude=True, repr=False)
    """Small images for the HTML page; not in the JSON file."""


class ReasoningFormat(_Part):
    """What sets reasoning apart from the answer in the samples' texts."""

    tags: tuple[str, str]
    is_opened: bool
    """By the prompt: a text begins inside the reasoning."""


class StreamedSample(_Part):
    """One question of a streamed comparison, and the reply that both engines were fed."""

    name: str
    question: str
    prompt_tokens: int
    reply: str
    reply_tokens: int
    top1_agreeing: int
    """Of the tokens behind the prompt and behind each of the reply's: how many both engines would have chosen."""


class Latency(_Part):
    """Mean time of one stage, measured on this machine."""

    stage: str
    unit: str
    reference_ms: Number
    candidate_ms: Number


class CalibrationFacts(_Part):
    """What a quantized engine's scales come from."""

    recipe: str
    samples: int
    """0 of a recipe that reads weights alone."""
    warnings: tuple[str, ...]
    sensitivity: SensitivityTable | None = None
    """Where precisions were chosen within a budget."""


class BundleFacts(_Part):
    """One of several bundles of a checkpoint, compared with the float32 model on the same questions."""

    name: str
    precision: Precision
    target: str
    size_bytes: int
    """Of its weights."""
    mean_kl: Number
    """Of the next token, over all decode steps, nats."""
    top1_agreement: Number
    correct: int
    scored: int
    """Questions whose right answer is known."""


FEWEST_TEXT_TOKENS = 100
"""Of fewer, token frequencies are no measure: each token is then nearly its own most frequent."""


class LayerRange(_Part):
    """How large a layer's tensors become."""

    layer: str
    tensor: str
    """The one with the largest magnitude."""
    magnitude: Number
    """Infinite where it was NaN."""


class RangeFacts(_Part):
    """How large the reference's tensors become, for an engine that computes in a type of less range."""

    dtype: Compute
    largest: Number
    """Finite number of the type."""
    layers: tuple[LayerRange, ...]
    """In the order of computation."""

    @property
    def beyond(self) -> tuple[LayerRange, ...]:
        """Layers that the type does not hold."""
        return tuple(layer for layer in self.layers if not layer.magnitude <= self.largest)

    @property
    def close(self) -> tuple[LayerRange, ...]:
        """Layers that the type holds, with less than a factor of two to spare."""
        return tuple(layer for layer in self.layers if self.largest / 2 < layer.magnitude <= self.largest)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each layer that is close."""
        return tuple(
            f"{layer.tensor} reaches {layer.magnitude:.4g}, more than half of what {self.dtype} holds "
            f"({self.largest:g}): other inputs may overflow"
            for layer in self.close
        )

    def error(self) -> ParityError:
        """That of the first layer beyond the type's range."""
        first = self.beyond[0]
        more = f", and {Count(len(self.beyond) - 1, 'more layer')}" if len(self.beyond) > 1 else ""
        return ParityError(
            f"The model overflows in {self.dtype}: PyTorch's own tensors leave its range.",
            where=first.tensor,
            expected=f"magnitudes of at most {self.largest:g}",
            found=f"{first.magnitude:.4g}{more}",
            fix="build with --precision bf16 or fp32",
        )


class Saturation(_Part):
    """A linear whose input is quantized by a static scale, and was larger than that scale represents: it is clipped."""

    linear: str
    ratio: Number
    """Largest magnitude over the largest that the scale represents."""

    @property
    def warning(self) -> str | None:
        """A sentence where most of the input's range is clipped; a little beyond a calibration's maximum is usual."""
        if self.ratio <= 2:
            return None
        return (
            f"inputs of {self.linear} reach {self.ratio:.3g} times what their static scale represents, and are clipped"
        )


class TextFacts(_Part):
    """How likely the reference finds right replies to calibration questions; nats per token."""

    texts: int
    tokens: int
    nll: Number
    """Negative log-likelihood of the replies' tokens, each given all before it."""
    unigram_nll: Number
    """The same by the replies' own token frequencies, without any model: the limit."""
    prediction_entropy: Number
    """How undecided the model's predictions are."""
    uniform_nll: Number
    """log(vocabulary): where all tokens are equally likely."""

    @property
    def not_gated(self) -> str | None:
        """Why the limit does not apply to this model; None if it does."""
        if self.tokens < FEWEST_TEXT_TOKENS:
            return f"only {Count(self.tokens, 'token')} of text"
        undecided = self.prediction_entropy >= 0.9 * self.uniform_nll and self.nll <= 1.1 * self.uniform_nll
        return "its predictions are as good as uniform, as those of a model without training are" if undecided else None

    @property
    def passed(self) -> bool:
        """Whether the replies are at least as likely as their token frequencies make them, or the check was not
        gated."""
        return self.not_gated is not None or self.nll <= self.unigram_nll

    def error(self) -> ParityError:
        """Return the error to raise if the check failed."""
        return ParityError(
            "As it was read, the quantized checkpoint does not model text.",
            where=f"{Count(self.texts, 'right reply', 'right replies')} to calibration questions, "
            f"{Count(self.tokens, 'token')}, rated by PyTorch",
            expected=f"at most {self.unigram_nll:.3g} nats per token, what the replies' own token frequencies give",
            found=f"{self.nll:.3g} nats per token",
            fix="check the quantization settings in config.json (checkpoint_format, sym, version, group_size) against "
            "how the checkpoint was made",
        )


class ParityReport(_Part):
    """A candidate engine compared with a reference engine."""

    schema_version: Literal[1] = 1
    reference: str
    candidate: str
    precision: Precision
    gate: Gate
    profile: ToleranceProfile | None = None
    """Whose limits hold; unknown of reports of earlier versions."""
    max_new_tokens: int
    first_bad: str | None
    """The first boundary in data-flow order that is out of tolerance."""
    causes: tuple[str, ...]
    """What usually makes that boundary, and none before it, go wrong; or what is lost, and where most of it."""
    next_steps: tuple[str, ...] = ()
    """What loses less, where quantizing costs more than is allowed."""
    boundaries: tuple[BoundaryResult, ...]
    decode_steps: tuple[StepResult, ...]
    samples: tuple[SampleResult, ...]
    """Empty where the comparison was streamed: engines of which one block is held at a time give no answers."""
    streamed: tuple[StreamedSample, ...] = ()
    reasoning: ReasoningFormat | None = None
    environment: dict[str, str]
    """Versions that the numbers may depend on."""
    provenance: Provenance | None = None
    """None of a comparison from Python, and of reports of earlier versions."""
    latency: tuple[Latency, ...] = ()
    calibration: CalibrationFacts | None = None
    rounded_inputs: RoundedInputs | None = None
    """Where the engine rounds inputs of quantized weights although the calibration leaves them alone."""
    ranges: RangeFacts | None = None
    """Where the engine's type has a range that a model may leave."""
    saturations: tuple[Saturation, ...] = ()
    """Where inputs are quantized by static scales."""
    texts: TextFacts | None = None
    """Of a checkpoint that was quantized already: both endpoints decode its quantized values in the same way."""
    bundles: tuple[BundleFacts, ...] = ()
    """This one first, where others were asked for."""

    @property
    def title(self) -> str:
        """What the gate asks, in words."""
        if self.gate != "quantization":
            who = {"images": "With images encoded apart, it", "decoder": "With the decoder of another engine, it"}
            return f"{who.get(self.gate, 'The engine')} computes what PyTorch computes"
        profile = self.profile or self.precision
        return f"What {profile} cost" if profile.endswith("weights") else f"What {profile.upper()} costs"

    @property
    def passed(self) -> bool:
        """Whether all boundaries, the range check and the text check passed."""
        overflows, misread = self.ranges and self.ranges.beyond, self.texts and not self.texts.passed
        return self.first_bad is None and not overflows and not misread

    @property
    def warnings(self) -> tuple[str, ...]:
        """What people should know although nothing failed."""
        ranges = self.ranges.warnings if self.ranges else ()
        reason = self.texts.not_gated if self.texts else None
        texts = (
            (f"whether the quantized values are read correctly was not checked on texts: {reason}",) if reason else ()
        )
        altered = tuple(
            f"{name} is not as the bundle's manifest has it"
            for name in (self.provenance.altered if self.provenance else ())
        )
        return (*altered, *ranges, *(s.warning for s in self.saturations if s.warning), *texts)

    def boundary(self, name: str) -> BoundaryResult:
        """Return the result of a boundary.

        Raises:
            KeyError: that boundary was not compared.
        """
        return {boundary.name: boundary for boundary in self.boundaries}[name]

    def raise_if_failed(self) -> None:
        """Raise the error that the report stands for, if any check failed.

        Raises:
            ParityError: a tensor leaves the range of the engine's type, a boundary is out of tolerance (the error names
                the first one), or an imported quantized checkpoint does not model text.
        """
        if self.ranges and self.ranges.beyond:
            raise self.ranges.error()
        if self.first_bad is None:
            if self.texts and not self.texts.passed:
                raise self.texts.error()
            return
        boundary = self.boundary(self.first_bad)
        failed = [check for check in boundary.checks if not check.passed]
        what = f"{self.candidate} does not match {self.reference}"
        found = ", ".join(f"{check.metric} {check.value:.4g}" for check in failed)
        if self.next_steps:
            what = f"{self.candidate} loses too much against {self.reference}"
            found = "; ".join((found, *self.causes))
        raise ParityError(
            f"{what}: the first boundary out of tolerance is {boundary.name}",
            where=_whereabouts(boundary),
            expected=", ".join(f"{check.metric} {check.relation} {check.limit:g}" for check in failed),
            found=found,
            fix="; or ".join(self.next_steps or self.causes) or None,
        )


def _whereabouts(boundary: BoundaryResult) -> str:
    if boundary.problem:
        return boundary.problem
    if boundary.worst:
        return f"worst at {list(boundary.worst.index)} of sample {boundary.worst.sample}"
    return boundary.compared
