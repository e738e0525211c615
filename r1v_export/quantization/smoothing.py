"""What AWQ's and SmoothQuant's scales make of a checkpoint's tensors, whole or a few rows at a time.

A calibration keeps the scales; the tensors follow, bit for bit, by the operations that calibration did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.groups import LinearGroup, linear_groups, smoothed_tensors, smoothed_values
from r1v_export.quantization.recipe import Awq, Scheme, SmoothQuant


def is_smoothed(group: LinearGroup, schemes: Mapping[str, Scheme]) -> bool:
    """Whether a scale is moved from the layer that produces a group's input into the group's weights."""
    scheme = schemes.get(group.linears[0])
    return group.smooth_layer is not None and scheme is not None and isinstance(scheme.weights, Awq | SmoothQuant)


def smoothed_groups(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> tuple[LinearGroup, ...]:
    """The groups of a model that `is_smoothed` holds for, in model order."""
    return tuple(group for group in linear_groups(spec) if is_smoothed(group, schemes))


@dataclass(frozen=True)
class Smoothing:
    """The scales of a whole model.

    groups: of `smoothed_groups`.
    read_scale: returns a group's scale [in], float32, by the group's name.
    """

    groups: tuple[LinearGroup, ...]
    read_scale: Callable[[str], Tensor]

    def rescales(self, tensor: str) -> bool:
        """Whether a tensor, by its checkpoint name, is another one than the checkpoint's."""
        return tensor in self._groups_of

    @property
    def tensors(self) -> tuple[str, ...]:
        """The checkpoint names of all tensors that are rescaled."""
        return tuple(self._groups_of)

    def rescaled(self, tensor: str, values: Tensor, rows: slice = slice(None)) -> Tensor:
        """What becomes of a tensor, float32.

        Args:
            tensor: checkpoint name.
            values: the checkpoint's values [rows, in_features], or [rows] of a bias or norm, of any floating dtype.
            rows: which of the tensor's rows these are; all if omitted.
        """
        values = values.float()
        for group in self._groups_of[tensor]:
            values = smoothed_values(group, self.read_scale(group.name), tensor, values, rows)
        return values

    @cached_property
    def _groups_of(self) -> dict[str, list[LinearGroup]]:
        """Tensor -> the groups whose scales it takes up, in the order in which they are applied."""
        found: dict[str, list[LinearGroup]] = {}
        for group in self.groups:
            for tensor in smoothed_tensors(group):
                found.setdefault(tensor, []).append(group)
        return found
