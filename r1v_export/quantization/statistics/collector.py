"""Hooks that collect statistics while a block computes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from r1v_export.errors import InputError
from r1v_export.quantization.calibration.blocks import Block
from r1v_export.quantization.groups import LinearGroup
from r1v_export.quantization.statistics.activation_statistics import (
    ActivationStatistics,
    BlockStatistics,
    add_gram,
    merge,
)


class StatisticsCollector:
    """Statistics of one block, growing with every sample that goes through it.

    Attributes:
        where: the sample being looked at, for messages.
    """

    def __init__(self) -> None:
        self.where = ""
        self._activations: dict[str, ActivationStatistics] = {}
        self._grams: dict[str, Tensor] = {}

    def statistics(self) -> BlockStatistics:
        return BlockStatistics(self._activations, self._grams)

    def expect(self, name: str, channels: int, gram_device: torch.device | None) -> None:
        """Start with statistics of nothing, so that what no sample reaches is there too."""
        self._activations[name] = ActivationStatistics.empty(channels)
        if gram_device is not None:
            self._grams[name] = torch.zeros(channels, channels, device=gram_device)

    def add(self, name: str, x: Tensor) -> None:
        """
        Raises:
            InputError: a value is NaN or infinite.
        """
        seen = ActivationStatistics.of(x)
        if not seen.is_finite:
            raise not_finite(name, self.where)
        self._activations[name] = merge(self._activations[name], seen)
        if name in self._grams:
            add_gram(self._grams[name], x)


@contextmanager
def observe(
    block: Block, module: nn.Module, groups: Collection[LinearGroup], with_gram: Collection[str], with_outputs: bool
) -> Iterator[StatisticsCollector]:
    """Collect statistics of a block's tensors while it computes.

    Args:
        groups: those to look at, of `block.groups`.
        with_gram: names of the sites whose Gram matrix is needed.
        with_outputs: look at `block.observed_outputs` too.
    """
    observation = StatisticsCollector()
    device = next(module.parameters()).device
    hooks = []
    for group in groups:
        observation.expect(group.name, group.in_features, device if group.name in with_gram else None)
        linear = module.get_submodule(block.module_name(group.linears[0]))
        hooks.append(linear.register_forward_pre_hook(_input_hook(observation, group.name)))
    for path, (name, transform) in block.observed_outputs().items() if with_outputs else ():
        observation.expect(name, module.get_parameter(f"{path}.weight").shape[0], None)
        hooks.append(module.get_submodule(path).register_forward_hook(_output_hook(observation, name, transform)))
    try:
        yield observation
    finally:
        for hook in hooks:
            hook.remove()


def _input_hook(observation: StatisticsCollector, name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        observation.add(name, args[0])

    return hook


def _output_hook(observation: StatisticsCollector, name: str, transform: Any) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        observation.add(name, transform(output))

    return hook


def not_finite(name: str, sample: str) -> InputError:
    return InputError(
        "An activation is NaN or infinite.",
        where=f"{name}, sample {sample}",
        expected="finite numbers",
        fix="calibrate in float32 on the CPU; if that does the same, the checkpoint is damaged",
    )
