"""What decides how two engines are compared, and the limits that the candidate must keep."""

from __future__ import annotations

from dataclasses import dataclass

from r1v_export.config import Compute, Precision
from r1v_export.parity.schema import CalibrationFacts
from r1v_export.parity.tolerances import Gate, ToleranceProfile, profile_for

PAIRS: tuple[Gate, ...] = ("images", "decoder")
"""Gates of an engine together with another one. A build does not fail by them: such a pair is not used then."""


@dataclass(frozen=True)
class CheckOptions:
    """How `check` compares a candidate with a reference. The first five choose the limits, see `parity.tolerances`."""

    precision: Precision
    """That the candidate was built in."""
    compute: Compute = "float32"
    """What the candidate computes in."""
    quantized_inputs: bool = False
    """Whether any of the candidate's linears rounds its input to 8 bits."""
    gate: Gate = "arithmetic"
    """Whether the reference computes the same numbers, or is the original of a quantized candidate."""
    own_weights: ToleranceProfile | None = None
    """The limits of what quantizing costs, where the candidate's weights were rounded when it was built, whatever
    `precision` says."""
    rounds_inputs: bool = False
    """Whether the candidate itself rounds inputs of quantized weights to 8 bits; for the report."""
    rounding: tuple[str, ...] = ()
    """Which engines do, where the candidate is a pair; for the report."""
    rounds_images: bool = False
    """Whether what encodes images rounds weights and inputs of the vision tower to 8 bits by itself; for the report."""
    rounds_head: bool = False
    """Whether its head is rounded likewise; for the report."""
    calibration: CalibrationFacts | None = None
    """What the candidate's scales come from, None where nothing is quantized; for the report."""
    blocks: bool = False
    """Also compare each ViT block. Without, this is done only when the vision features are out of tolerance, to name
    the block."""
    max_new_tokens: int = 96
    """Longest greedy answer."""
    batch_size: int = 16
    """Samples decoded together."""
    one_sequence: bool = False
    """Before the others, decode the first sample by what engines have for one sequence alone."""
    measure_latency: bool = False
    """Time each stage of both engines. The report is then not the same twice. For float16 or quantized inputs, the
    reference's times include recording how large its tensors become."""

    @property
    def profile(self) -> ToleranceProfile:
        """The limits.

        Raises:
            UsageError: the table has none for such an engine.
        """
        if self.gate == "quantization" and self.own_weights is not None:
            return self.own_weights
        return profile_for(self.gate, self.precision, self.compute, self.quantized_inputs)
