"""A plan, loaded: shapes to profile, tensors to addresses, one call to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from r1v_export.errors import BundleError, UsageError
from r1v_export.targets.tensorrt.build.plan import Binding, PlanInfo
from r1v_export.targets.tensorrt.build.profiles import profile_for
from r1v_export.targets.tensorrt.device import Accelerator
from r1v_export.targets.tensorrt.runtime.caches import RuntimeCache

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}
"""What a plan's inputs and outputs may be."""


class Session:
    """Runs one plan. Each profile has an execution context of its own, made when it is first needed.

    Args:
        engine: an ICudaEngine.
        info: what the plan is.
        name: of the plan, for messages.
        cache: of kernels that are compiled when the plan is first run, where the library does that.
    """

    def __init__(
        self, engine: Any, info: PlanInfo, accelerator: Accelerator, name: str, cache: RuntimeCache | None = None
    ) -> None:
        self.engine, self.info, self.accelerator, self.name, self.cache = engine, info, accelerator, name, cache
        self._contexts: dict[int, Any] = {}
        self._saved_contexts = 0

    @property
    def max(self) -> Mapping[str, int]:
        """The largest size of each symbol, over all profiles."""
        symbols = {symbol for profile in self.info.ranges for symbol in profile}
        return {symbol: max(p[symbol].max for p in self.info.ranges if symbol in p) for symbol in symbols}

    def outputs(self, sizes: Mapping[str, int], names: Sequence[str]) -> dict[str, Tensor]:
        """New tensors on the device for some of the plan's outputs."""
        wanted = [binding for binding in self.info.outputs if binding.name in names]
        return {binding.name: self.empty(binding, sizes) for binding in wanted}

    def empty(self, binding: Binding, sizes: Mapping[str, int]) -> Tensor:
        """Allocate a zeroed tensor for a binding, with the given sizes of its symbols."""
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in binding.shape]
        return torch.zeros(shape, dtype=DTYPES[binding.dtype], device=self.accelerator.device)

    def prepare(self, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Run:
        """Everything set for a run with these tensors: contiguous, on the device, of the plan's types, for every input
        and output. An output may share the memory of an input.

        Raises:
            UsageError: no profile of the plan takes these sizes.
            BundleError: TensorRT refuses a shape.
        """
        number = profile_for(self.info.ranges, sizes)
        if number is None:
            ranges = (
                ", ".join(f"{symbol} {each.min} to {each.max}" for symbol, each in profile.items())
                for profile in self.info.ranges
            )
            raise UsageError(
                "An engine was not built for these sizes.",
                where=self.name,
                expected="; or ".join(ranges),
                found=", ".join(f"{symbol} {size}" for symbol, size in sizes.items()),
                fix="build with a wider `tensorrt:` block in the build file",
            )
        context = self._context(number)
        for binding in self.info.bindings:
            tensor = tensors[binding.name]
            if binding.is_input and not context.set_input_shape(binding.name, tuple(tensor.shape)):
                raise BundleError(
                    "TensorRT refuses the shape of an input.",
                    where=f"{self.name}: {binding.name}",
                    expected=binding.shape,
                    found=tuple(tensor.shape),
                )
            context.set_tensor_address(binding.name, tensor.data_ptr())
        return Run(context, self.accelerator, self.name, self._after_run)

    def _context(self, number: int) -> Any:
        if number not in self._contexts:
            create = self.engine.create_execution_context
            context = create() if self.cache is None else create(self.cache.config)
            if context is None:
                raise BundleError(
                    "TensorRT cannot create an execution context.", where=self.name, found="out of memory?"
                )
            context.set_optimization_profile_async(number, self.accelerator.stream)
            self.accelerator.synchronize()
            self._contexts[number] = context
        return self._contexts[number]

    def _after_run(self) -> None:
        """What a profile needs at once is compiled by the end of its first run."""
        if self.cache is not None and self._saved_contexts < len(self._contexts):
            self.cache.save()
            self._saved_contexts = len(self._contexts)


class Run:
    """A context with its shapes and addresses set."""

    def __init__(self, context: Any, accelerator: Accelerator, name: str, after: Callable[[], None]) -> None:
        self._context, self._accelerator, self._name, self._after = context, accelerator, name, after

    def enqueue(self) -> None:
        """Put the run on the stream.

        Raises:
            BundleError: TensorRT refuses it.
        """
        if not self._context.execute_async_v3(self._accelerator.stream):
            raise BundleError("TensorRT cannot run an engine.", where=self._name, fix="see TensorRT's log on stderr")

    def __call__(self) -> None:
        """Run, and wait for the results."""
        self.enqueue()
        self._accelerator.synchronize()
        self._after()
