"""Which blocks of a model a calibration runs, collects statistics of and quantizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from r1v_export.checkpoint.names import expected_tensors
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.algorithms.quantize_block import needs_gram
from r1v_export.quantization.calibration.blocks import Block, DecoderBlock, blocks
from r1v_export.quantization.groups import LinearGroup
from r1v_export.quantization.recipe import Recipe, Scheme, SmoothQuant, resolve
from r1v_export.quantization.rounded_weights import rounded_linears, uncalibrated_linears

_ROUNDING_ROWS = {"rtn": 50, "smoothquant": 50, "awq": 900, "gptq": 2200, "imported": 0}
"""Quantizing a block takes about as long as sending so many vectors through it; for the time left."""


@dataclass(frozen=True)
class CalibrationPlan:
    """Which blocks run, which are collected from and which are quantized.

    Attributes:
        spec: the model.
        recipe: how it is quantized.
    """

    spec: ModelSpec
    recipe: Recipe

    @cached_property
    def schemes(self) -> dict[str, Scheme]:
        """Of every linear that is quantized."""
        return resolve(self.recipe, self.spec)

    @cached_property
    def blocks(self) -> list[Block]:
        """All blocks of the model, in order."""
        return blocks(self.spec)

    @cached_property
    def rounded(self) -> frozenset[str]:
        """Linears whose quantized values follow from the checkpoint and scales, and are not kept."""
        return rounded_linears(self.schemes)

    @cached_property
    def calibrated(self) -> dict[str, Scheme]:
        """Of every linear of which there is anything to find: that of the others follows from the checkpoint."""
        alone = uncalibrated_linears(self.spec, self.schemes)
        return {name: scheme for name, scheme in self.schemes.items() if name not in alone}

    def is_quantized(self, block: Block) -> bool:
        """Whether the block has anything to be written for it."""
        linears = (linear for group in block.groups for linear in group.linears)
        return self.has_cache_scales(block) or any(linear in self.calibrated for linear in linears)

    def has_cache_scales(self, block: Block) -> bool:
        """Whether a block needs scales for a quantized key-value cache."""
        return self.recipe.kv_cache is not None and isinstance(block, DecoderBlock)

    def collected_groups(self, block: Block) -> list[LinearGroup]:
        """Groups whose statistics an algorithm or a static scale needs."""
        return [s for s in block.groups if any(needs_statistics(self.schemes.get(linear)) for linear in s.linears)]

    def gram_groups(self, block: Block) -> set[str]:
        """Names of the groups whose Gram matrix an algorithm needs."""
        schemes = {group.name: [self.schemes.get(linear) for linear in group.linears] for group in block.groups}
        return {name for name, found in schemes.items() if any(s is not None and needs_gram(s) for s in found)}

    def is_collected(self, block: Block) -> bool:
        """Whether statistics of a block are collected."""
        return self.has_cache_scales(block) or bool(self.collected_groups(block))

    @cached_property
    def last_collected(self) -> int:
        """Index of the last block that samples must go through; -1 if the recipe needs weights alone."""
        return max((i for i, block in enumerate(self.blocks) if self.is_collected(block)), default=-1)

    def propagates_error(self, index: int) -> bool:
        """Whether the next block's inputs are the outputs of this block as it is quantized."""
        block = self.blocks[index]
        changes = any(linear in self.schemes for group in block.groups for linear in group.linears)
        return self.recipe.propagate_error and index < self.last_collected and (changes or self.has_cache_scales(block))

    def forward_passes(self, index: int) -> int:
        """How many times the samples go through a block: for its statistics, and for the inputs of the next block."""
        if index > self.last_collected:
            return 0
        return 1 + self.is_collected(self.blocks[index]) if self.propagates_error(index) else 1

    def forward_cost(self, index: int, tokens: int, tiles: int) -> int:
        """Cost of running a sample through a block, in multiplications; for progress."""
        block = self.blocks[index]
        return self.parameters[block.name] * block.rows(tokens, tiles) if index <= self.last_collected else 0

    def rounding_cost(self, index: int) -> int:
        """Cost of quantizing a block, in the unit of `forward_cost`."""
        block = self.blocks[index]
        linears = (linear for group in block.groups for linear in group.linears)
        found = [self.calibrated[linear] for linear in linears if linear in self.calibrated]
        most = max((_ROUNDING_ROWS[scheme.weights.algorithm] for scheme in found), default=0)
        return self.parameters[block.name] * most

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Weights of the linears of each block."""
        tensors = expected_tensors(self.spec)
        counts = dict.fromkeys((block.name for block in self.blocks), 0)
        for block in self.blocks:
            for shape in (tensors[f"{linear}.weight"] for group in block.groups for linear in group.linears):
                counts[block.name] += shape[0] * shape[1]
        return counts


def reads_samples(recipe: Recipe, spec: ModelSpec) -> bool:
    """Whether a calibration by this recipe sends samples through the model; else weights alone decide."""
    return CalibrationPlan(spec, recipe).last_collected >= 0


def needs_statistics(scheme: Scheme | None) -> bool:
    """Whether a linear's scheme needs to know what enters it."""
    if scheme is None:
        return False
    static_inputs = scheme.inputs is not None and scheme.inputs.mode == "static"
    return static_inputs or needs_gram(scheme) or isinstance(scheme.weights, SmoothQuant)
