"""TensorRT and TensorRT-RTX: which one is used, what it can do here, and every place where the two differ.

Both offer nearly the same Python module under two names. Nothing else in this package imports either, stores one of
their enum numbers (they change between releases), or asks which of them it has.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from r1v_export.errors import CapabilityError
from r1v_export.files import open_regular

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"

OLDEST_COMPUTE_CAPABILITY: dict[ir.DataType, int] = {
    ir.DataType.FLOAT8E4M3FN: 89,
    ir.DataType.BFLOAT16: 80,
    ir.DataType.INT4: 80,
}
"""Types that not every GPU computes with, and the first that does."""

_NEEDS_DECOMPOSING = "not supported by a dedicated kernel"
"""In the message of a build that found no fused kernel for an attention."""


@dataclass(frozen=True)
class Distribution:
    """How one of the two libraries is had."""

    module: str
    distribution: str
    versions: str
    """Those that fit, as pip takes them."""
    oldest: tuple[int, ...]
    builds_without_gpu: bool
    default_sm: tuple[int, ...]
    """Compute capabilities where none are asked for; empty: the GPU that is there."""

    @property
    def requirement(self) -> str:
        """The pip requirement: distribution and versions."""
        return f"{self.distribution}{self.versions}"

    @property
    def install(self) -> str:
        """What to type to get it."""
        conflict = " (not next to tensorrt-llm, which pins TensorRT 10)" if self.module == "tensorrt" else ""
        return f"pip install '{self.requirement}'{conflict}"


DISTRIBUTIONS = {
    TENSORRT: Distribution("tensorrt", "tensorrt", ">=10.13,<12", (10, 13), False, ()),
    TENSORRT_RTX: Distribution("tensorrt_rtx", "tensorrt-rtx-cu13", ">=1.7,<2", (1, 7), True, (89, 120)),
}
"""Target -> its library."""


class Library:
    """One of the two libraries, imported.

    Args:
        target: `tensorrt` or `tensorrt-rtx`.
        module: the imported module; both have the interface that is used here.
    """

    def __init__(self, target: str, module: Any) -> None:
        self.target, self.module = target, module
        self.distribution = DISTRIBUTIONS[target]

    @property
    def version(self) -> str:
        """Version of the installed library."""
        return str(self.module.__version__)

    @property
    def compute_capabilities(self) -> tuple[int, ...]:
        """Those that it builds for without such a GPU; empty where it builds for the GPU that is there only."""
        names = getattr(self.module, "ComputeCapability", None)
        known = names.__members__ if names is not None else {}
        return tuple(int(name[2:]) for name in known if name.startswith("SM"))

    @property
    def streams(self) -> bool:
        """Whether a plan can be written while it is built, instead of being returned whole."""
        return hasattr(self.module, "IStreamWriter") and hasattr(
            self.module.Builder, "build_serialized_network_to_stream"
        )

    @property
    def times_kernels(self) -> bool:
        """Whether builds measure kernels, so that a timing cache saves work. TensorRT-RTX chooses them when it runs;
        its timing cache changes nothing and asks for a GPU."""
        return not self.distribution.builds_without_gpu

    @property
    def compiles_kernels(self) -> bool:
        """Whether engines compile their kernels when they are first run, so that a runtime cache saves work."""
        return hasattr(self.module, "IRuntimeCache")

    def logger(self, on_message: Callable[[str, str], None]) -> Any:
        """An ILogger that passes on (severity, message), the severity by its name."""
        module = self.module

        class Logger(module.ILogger):  # type: ignore[name-defined,misc]
            def log(self, severity: Any, message: str) -> None:
                on_message(severity.name, message)

        return Logger()

    def new_network(self, builder: Any) -> Any:
        """An empty strongly typed network: the types are those of the graph, and the builder changes none of them."""
        flag = self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return builder.create_network(1 << int(flag))

    def set_compute_capabilities(self, config: Any, sm: Sequence[int]) -> None:
        """Build for these; nothing to be set where they are empty: the GPU that is there."""
        if not sm:
            return
        config.num_compute_capabilities = len(sm)
        for index, number in enumerate(sm):
            config.set_compute_capability(getattr(self.module.ComputeCapability, f"SM{number}"), index)

    def set_decomposable(self, network: Any, decomposable: bool) -> int:
        """Say of every attention whether it may run as several kernels; how many there are."""
        attentions = [self._attention(network.get_layer(index)) for index in range(network.num_layers)]
        found = [attention for attention in attentions if attention is not None]
        for attention in found:
            attention.decomposable = decomposable
        return len(found)

    def _attention(self, layer: Any) -> Any:
        if layer.type.name == "ATTENTION_INPUT":
            layer.__class__ = self.module.IAttentionInputLayer
            return layer.attention
        return None

    @staticmethod
    def lacks_fused_attention(messages: Sequence[str]) -> bool:
        """Whether a build failed because an attention has no fused kernel and was not to be decomposed."""
        return any(_NEEDS_DECOMPOSING in message for message in messages)

    def strip_plan(self, config: Any) -> None:
        """Leave the weights out of the plan, to be refitted from the same ones."""
        flags = self.module.BuilderFlag
        config.set_flag(flags.STRIP_PLAN)
        config.set_flag(flags.REFIT_IDENTICAL)

    def header_problem(self, runtime: Any, plan: Path) -> str | None:
        """What the library finds wrong in a plan's first bytes, before it is read; None also where it cannot look."""
        if not hasattr(runtime, "get_engine_validity"):
            return None
        with open_regular(plan) as file:
            header = file.read(runtime.engine_header_size)
        validity, diagnostics = runtime.get_engine_validity(header)
        if validity != self.module.EngineValidity.INVALID:
            return None
        known = self.module.EngineInvalidityDiagnostics.__members__
        names = [name.lower().replace("_", " ") for name, flag in known.items() if int(diagnostics) & int(flag)]
        return ", ".join(names) or None


def load(target: str) -> Library:
    """Import a target's library.

    Raises:
        CapabilityError: it is not installed, cannot be loaded, or is too old.
    """
    distribution = DISTRIBUTIONS[target]
    try:
        module = importlib.import_module(distribution.module)
    except (ImportError, OSError) as error:  # OSError: one of its own shared libraries is not found.
        raise CapabilityError(
            f"The target {target} needs a library that cannot be loaded.",
            where=distribution.module,
            expected=distribution.requirement,
            found=error,
            fix=distribution.install,
        ) from error
    library = Library(target, module)
    if version_number(library.version) < distribution.oldest:
        raise CapabilityError(
            f"The library of the target {target} is too old.",
            where=distribution.module,
            expected=f"{'.'.join(map(str, distribution.oldest))} or newer",
            found=library.version,
            fix=distribution.install,
        )
    return library


def version_number(version: str) -> tuple[int, ...]:
    """`10.13.3.9` -> (10, 13, 3, 9)"""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
