"""Hooks that collect statistics while a block computes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from r1v_export.errors import InputError
from r1v_export.quantization.groups import LinearGroup
from r1v_export.quantization.statistics.activation_statistics import (
    ActivationStatistics,
    BlockStatistics,
    add_gram,
    merge,
)

Outputs = Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]
"""Path of a module -> name of its output's statistics, and what is done to the output before it is added to them."""


class StatisticsCollector:
    """Statistics of one block, accumulated over the samples that go through it.

    Attributes:
        sample: name of the current sample, for error messages.

    Args:
        with_histograms: whether to collect those, which cost more than all else but Gram matrices.
    """

    def __init__(self, with_histograms: bool = True) -> None:
        self.sample, self._with_histograms = "", with_histograms
        self._activations: dict[str, ActivationStatistics] = {}
        self._grams: dict[str, Tensor] = {}

    def statistics(self) -> BlockStatistics:
        """Return the statistics collected so far."""
        return BlockStatistics(self._activations, self._grams)

    def expect(self, name: str, channels: int, gram_device: torch.device | None) -> None:
        """Start with empty statistics, so that inputs that no sample reaches have an entry too.

        Args:
            gram_device: also accumulate a Gram matrix, on this device.
        """
        self._activations[name] = ActivationStatistics.empty(channels)
        if gram_device is not None:
            self._grams[name] = torch.zeros(channels, channels, device=gram_device)

    def add(self, name: str, x: Tensor) -> None:
        """Add activations [..., channels] to the statistics of this name.

        Raises:
            InputError: a value is NaN or infinite.
        """
        added = ActivationStatistics.from_activations(x, self._with_histograms)
        if not added.is_finite:
            raise not_finite(name, self.sample)
        self._activations[name] = merge(self._activations[name], added)
        if name in self._grams:
            add_gram(self._grams[name], x)


@contextmanager
def collect_statistics(
    module: nn.Module,
    inputs: Mapping[str, LinearGroup],
    with_gram: Collection[str],
    outputs: Outputs,
    with_histograms: bool = True,
) -> Iterator[StatisticsCollector]:
    """Collect statistics of a module's tensors while it computes.

    Args:
        inputs: groups whose input is collected, by the path of one of their linears in the module.
        with_gram: names of the groups whose Gram matrix is needed.
        outputs: outputs of linears that are collected too.
        with_histograms: of `StatisticsCollector`.
    """
    collector = StatisticsCollector(with_histograms)
    device = next(module.parameters()).device
    hooks = []
    for path, group in inputs.items():
        collector.expect(group.name, group.in_features, device if group.name in with_gram else None)
        hooks.append(module.get_submodule(path).register_forward_pre_hook(_input_hook(collector, group.name)))
    for path, (name, transform) in outputs.items():
        collector.expect(name, module.get_parameter(f"{path}.weight").shape[0], None)
        hooks.append(module.get_submodule(path).register_forward_hook(_output_hook(collector, name, transform)))
    try:
        yield collector
    finally:
        for hook in hooks:
            hook.remove()


def _input_hook(collector: StatisticsCollector, name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        collector.add(name, args[0])

    return hook


def _output_hook(collector: StatisticsCollector, name: str, transform: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        collector.add(name, transform(output))

    return hook


def not_finite(name: str, sample: str) -> InputError:
    """The error of an activation that is NaN or infinite."""
    return InputError(
        "An activation is NaN or infinite.",
        where=f"{name}, sample {sample}",
        expected="finite numbers",
        fix="calibrate in float32 on the CPU; if that does the same, the checkpoint is damaged",
    )
