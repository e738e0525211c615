"""The targets that a build can have, by name, each imported when it is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

from r1v_export.checkpoint.spec import ModelSpec
from r1v_export.config import Compute, Device
from r1v_export.contract import Engine
from r1v_export.errors import CapabilityError, UsageError

BUILDERS = {
    "onnxruntime": "r1v_export.builders.onnxruntime.builder:OnnxRuntimeBuilder",
}
"""Target name -> "module:class" of its Builder."""


class Builder(Protocol):
    """Turns a bundle's standard graphs into one target's engines, and opens them."""

    name: str

    def check(self, device: Device = "cpu", compute: Compute = "float32") -> None:
        """Raise CapabilityError unless this machine can build and run the target on `device` with such graphs."""

    def build(self, graphs: Path, out: Path, spec: ModelSpec, device: Device) -> None:
        """Write engines into the empty folder `out`; `graphs` holds the contract's graphs and their weights.

        The files come out the same for the same input. `out` is to become `engines/<name>` beside `graphs`, and engines
        may refer to the weights there.

        Raises:
            CapabilityError: the device cannot compute what the graphs ask for.
            GraphError: a graph that the target refuses.
        """

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> Engine:
        """The engines in a bundle's folder `engines/<name>`.

        Raises:
            CapabilityError: this machine lacks the device.
            BundleError: engine files are missing or unusable.
        """
        ...


def builder(name: str) -> Builder:
    """The builder of a target. Importing it imports what the target needs.

    Raises:
        UsageError: there is no such target.
        CapabilityError: a package that it needs is not installed.
    """
    if name not in BUILDERS:
        raise UsageError("There is no such target.", expected=" or ".join(sorted(BUILDERS)), found=name)
    module, class_name = BUILDERS[name].split(":")
    try:
        return getattr(importlib.import_module(module), class_name)()
    except ModuleNotFoundError as error:
        raise CapabilityError(
            f"The target {name} needs a package that is not installed.",
            expected=error.name,
            fix=f"pip install 'r1v-export[{name}]'",
        ) from error
