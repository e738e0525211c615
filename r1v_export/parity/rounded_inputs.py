"""What a report says of inputs that an engine rounds by itself."""

from __future__ import annotations

from typing import Literal

from r1v_export.parity.metric_text import share, short
from r1v_export.strict import StrictModel


class RoundedInputs(StrictModel):
    """What the engine rounds to 8 bits although the calibration leaves it alone: inputs of quantized weights, and the
    vision tower."""

    type: Literal["int8"] = "int8"
    """With a scale for each block of inputs."""
    inputs: bool = True
    """Whether it does; False where images alone are rounded."""
    head: bool = False
    """Whether the head and its inputs are rounded likewise, where the calibration leaves them alone."""
    images: bool = False
    """Whether what encodes images rounds weights and inputs of the vision tower, where the calibration leaves them
    alone."""
    mean_kl: float | None
    """What that costs: divergence of the next token, over all decode steps, nats, from the same quantized weights with
    inputs as they are. None where the reference is the original model: this cost is then a part of the whole."""
    top1_agreement: float | None
    """Likewise, the share of equal greedy choices."""
    engines: tuple[str, ...] = ()
    """Which engines round, where a pair of them is compared; none is named where there is one."""

    @property
    def sentence(self) -> str:
        """The same for people."""
        return "; ".join([self._of_inputs] * self.inputs + [self._of_images] * self.images)

    @property
    def _of_inputs(self) -> str:
        engines = f" by {' and '.join(self.engines)}" if self.engines else ""
        inputs = "the head, its inputs and those" if self.head else "inputs"
        what = f"{inputs} of quantized weights are rounded to {self.type} in blocks{engines}"
        if self.mean_kl is None or self.top1_agreement is None:
            return f"{what}; that is a part of this cost"
        same = f"{share(self.top1_agreement)} of greedy choices are the same"
        return f"{what}: {short(self.mean_kl)} nats of mean KL, {same}"

    @property
    def _of_images(self) -> str:
        # Divergence is of steps on the reference's own image embeddings: the tower's rounding is not in it.
        rounded = f"rounded to {self.type}{' as well' if self.inputs else ''}"
        return f"weights and inputs of the vision tower are {rounded}, which the error at vision shows"
