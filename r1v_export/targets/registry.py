"""The targets that a build can have, by name, each imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from r1v_export.config import BuildConfig, Compute, Device
from r1v_export.contract import Engine
from r1v_export.errors import CapabilityError, UsageError

if TYPE_CHECKING:
    from r1v_export.checkpoint.checkpoint import Checkpoint
    from r1v_export.checkpoint.spec import ModelSpec
    from r1v_export.quantization.artifact.artifact import Artifact
    from r1v_export.quantization.recipe import Scheme

TARGETS = {
    "onnxruntime": "r1v_export.targets.onnxruntime.target:OnnxRuntimeTarget",
    "tensorrt": "r1v_export.targets.tensorrt.target:TensorRTTarget",
    "tensorrt-rtx": "r1v_export.targets.tensorrt.target:TensorRTRTXTarget",
    "tensorrt-llm": "r1v_export.targets.tensorrt_llm.target:TensorRTLLMTarget",
    "hf-unified": "r1v_export.targets.hf_unified.target:HfUnifiedTarget",
}
"""Target name -> "module:class" of its Target. `run` and `check` take a bundle's first, in this order."""


@dataclass(frozen=True)
class BuildInputs:
    """What an engine is made from."""

    graphs: Path
    """Folder with the standard graphs that the target asked for, and their weights."""
    checkpoint: Checkpoint
    artifact: Artifact | None
    """The calibration; None where nothing is quantized."""
    config: BuildConfig


@dataclass(frozen=True)
class NumericsSpec:
    """What an engine rounds that parity with PyTorch must allow for."""

    compute: Compute
    """The dtype of whatever is not quantized."""
    rounds_inputs: bool = False
    """Whether inputs are rounded to 8 bits although the calibration leaves them alone."""


class Advance(Protocol):
    """Is told what was done of a piece of work since the last call."""

    def __call__(self, amount: int, doing: str = "") -> None:
        """
        Args:
            amount: in the unit of the work; for engines, hundredths.
            doing: what is at work now, in a few words for people; where empty, what was said before holds.
        """


class Target(Protocol):
    """Turns a model into one target's engines, and opens them."""

    name: str
    graphs: tuple[str, ...]
    """The contract's graphs that it builds from; empty where checkpoint and calibration are enough."""

    def check(self, config: BuildConfig) -> None:
        """Raise CapabilityError or UsageError unless this machine can build that for this target."""

    def check_model(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
        """Raise UsageError unless this model, quantized so, can become engines; before any weight is read.

        Args:
            schemes: of every quantized linear; empty where that is still to be found.
        """

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        """What `build` will write, roughly and at least: weights, where it does not share the graphs'."""
        ...

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        """What the engines round, apart from what the calibration quantizes."""
        ...

    def build(self, inputs: BuildInputs, out: Path, advance: Advance) -> None:
        """Write engines into the empty folder `out`.

        The files come out the same for the same input. `out` is to become `engines/<name>` beside `graphs`, and engines
        may refer to the weights there.

        Args:
            advance: told how many hundredths of the work were done since the last call.

        Raises:
            CapabilityError: the device cannot compute what the graphs ask for.
            GraphError: a graph that the target refuses.
        """

    def missing(self, device: Device) -> str | None:
        """What this machine lacks to run the engines on `device`; None where it runs them."""

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> Engine:
        """The engines in a bundle's folder `engines/<name>`.

        Raises:
            CapabilityError: this machine lacks the device.
            BundleError: engine files are missing or unusable.
        """
        ...


def get_target(name: str) -> Target:
    """The target of a name. Importing it imports what the target needs.

    Raises:
        UsageError: there is no such target.
        CapabilityError: a package that it needs is not installed.
    """
    if name not in TARGETS:
        raise UsageError("There is no such target.", expected=" or ".join(sorted(TARGETS)), found=name)
    module, class_name = TARGETS[name].split(":")
    try:
        return getattr(importlib.import_module(module), class_name)()
    except ModuleNotFoundError as error:
        raise CapabilityError(
            f"The target {name} needs a package that is not installed.",
            expected=error.name,
            fix=f"pip install 'r1v-export[{name}]'",
        ) from error
