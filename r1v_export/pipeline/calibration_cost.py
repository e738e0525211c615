"""What a calibration takes: seconds, memory, and disk while it runs, by the model's sizes, the recipe and the samples.

Constants are of one core of the machine that they were measured on; the rate of products is measured on the machine
that plans. benchmarks/plan_estimates.py compares estimates with builds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from r1v_export import contract
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, Matmul
from r1v_export.errors import CapabilityError
from r1v_export.memory import available_bytes
from r1v_export.model_spec import ModelSpec
from r1v_export.pipeline.activation_memory import activation_memory_bytes
from r1v_export.pipeline.calibration_samples import MAX_RESPONSE_TOKENS, SampleSize
from r1v_export.pipeline.estimate import (
    PROCESS_BYTES,
    READ_BYTES_PER_S,
    WRITE_BYTES_PER_S,
    graph_parameters,
    positions,
)
from r1v_export.pipeline.quantization_cost import quantizing_s
from r1v_export.pipeline.rates import Rates, measured_rates
from r1v_export.pipeline.workers import found_memory
from r1v_export.progress import size
from r1v_export.quantization.calibration.activations import SAVED_BY_DEFAULT
from r1v_export.quantization.calibration.blocks import (
    TILES_AT_ONCE,
    Block,
    DecoderBlock,
    ProjectorBlock,
    TokenEmbeddings,
    VisionBlock,
)
from r1v_export.quantization.calibration.plan import CalibrationPlan
from r1v_export.quantization.groups import linear_shapes
from r1v_export.quantization.recipe import Awq, Gptq, Recipe
from r1v_export.quantization.sizes import checkpoint_bytes

RESPONSES_AT_ONCE = 8

_GRAM_FLOPS = 0.5
"""Of the rate of products: the matrices are larger than any cache."""
_ELEMENT_S = 14e-9
"""Of each element that enters a linear: its statistics, and the norms and activation functions around it."""
_PASS_S = 0.7e-3
"""Of a sample through a block, whatever the size and the number of cores."""
_SAMPLE_S = 5e-3
"""Of decoding, tiling and tokenizing, whatever the number of cores."""
_GENERATED_BYTES_PER_S = 5e9
"""Of weights that are read for each generated token."""
_OTHER_SAMPLES = 1.25
"""Activations of all samples, over those of as many like the first few, whose sizes are known."""
_FLOAT_BYTES, _STORED_BYTES = 4, 2


@dataclass(frozen=True)
class CalibrationCost:
    """What one calibration takes.

    Attributes:
        plan: which blocks run and are quantized.
        samples: their sizes.
        matmul: what the operands of products are rounded to.
        activation_memory_bytes: of activations between blocks that are kept in memory.
        saved_share: the most that is written of them, over the quantized model's bytes.
    """

    plan: CalibrationPlan
    samples: Sequence[SampleSize]
    matmul: Matmul
    activation_memory_bytes: int
    saved_share: float = SAVED_BY_DEFAULT.share

    @property
    def scratch_bytes(self) -> int:
        """Disk that is taken while it runs, at most: what memory does not hold of what the samples bring to a block and
        to the next one, and what is saved of the rest."""
        if self.plan.last_collected < 0:
            return 0
        largest = round(_OTHER_SAMPLES * self._largest_activations)
        one = largest // max(1, len(self.samples))
        beyond = max(0, largest - self.activation_memory_bytes)
        saved = self.saved_share * checkpoint_bytes(self.plan.spec, self.plan.schemes, "bfloat16")
        if self.plan.recipe.propagate_error:  # all are saved at once, or none
            return min(2 * largest, 2 * beyond + (2 * largest if saved >= largest else one))
        return min(2 * largest, 2 * beyond + min(largest, round(saved)) + one)

    @property
    def memory_bytes(self) -> int:
        """The most that is held at once, but for pages of files that the kernel gives back."""
        if self.plan.last_collected < 0 and not self.plan.calibrated:
            return PROCESS_BYTES  # what weights alone decide is found when they are written
        held = min(self.activation_memory_bytes, 2 * self._largest_activations)
        return PROCESS_BYTES + held + max(map(self._block_bytes, range(len(self.plan.blocks))))

    def seconds(self, rates: Rates) -> float:
        """Roughly how long it takes."""
        forward = sum(self._forward_s(index, rates) for index in range(self.plan.last_collected + 1))
        quantizing = _quantizing_s(self.plan, rates, self.matmul)
        ran = self.plan.blocks[: self.plan.last_collected + 1]
        outputs = [_FLOAT_BYTES * self._outputs(block) for block in ran]
        written = sum(max(0, count - self.activation_memory_bytes) for count in outputs) / WRITE_BYTES_PER_S
        read = _STORED_BYTES * sum(graph_parameters(self.plan.spec).values()) / READ_BYTES_PER_S
        if not ran and not self.plan.calibrated:
            read = 0.0
        prepared = _SAMPLE_S * len(self.samples) if ran else 0.0
        return forward + quantizing + written + read + prepared

    def _rows(self, block: Block) -> list[int]:
        return [block.rows(sample.tokens, sample.tiles) for sample in self.samples]

    def _outputs(self, block: Block) -> int:
        """Elements that leave a block, of all samples."""
        spec = self.plan.spec
        wide = isinstance(block, ProjectorBlock | TokenEmbeddings | DecoderBlock)
        return sum(self._rows(block)) * (spec.language.hidden_size if wide else spec.vision.hidden_size)

    @property
    def _largest_activations(self) -> int:
        ran = self.plan.blocks[: self.plan.last_collected + 1]
        return _FLOAT_BYTES * max(map(self._outputs, ran), default=0)

    def _forward_s(self, index: int, rates: Rates) -> float:
        plan, block = self.plan, self.plan.blocks[index]
        gram_groups = plan.gram_groups(block)
        grams = sum(group.in_features**2 for group in block.groups if group.name in gram_groups) * sum(
            self._rows(block)
        )
        grams_s = 2 * grams / (rates.flops(self.matmul) * _GRAM_FLOPS)
        once = forward_seconds(block, plan.parameters[block.name], self.samples, self.matmul, rates)
        return grams_s + plan.forward_passes(index) * once

    def _block_bytes(self, index: int) -> int:
        """Held while one block runs and is quantized, beyond the activations between blocks."""
        plan, block = self.plan, self.plan.blocks[index]
        shapes = linear_shapes(plan.spec)
        linears = [shapes[linear] for group in block.groups for linear in group.linears]
        runs = index <= plan.last_collected
        largest = max((rows * columns for rows, columns in linears), default=0)
        in_float32 = runs and (self.matmul == "float32" or plan.propagates_error(index))
        weights = sum(rows * columns for rows, columns in linears) if in_float32 else 0
        widths = [group.in_features for group in block.groups]
        inside = 3 * max(self._rows_at_once(block), default=0) * max(widths, default=0) if runs else 0
        gram_groups = plan.gram_groups(block)
        grams = [group.in_features**2 for group in block.groups if group.name in gram_groups]
        algorithms = {type(plan.schemes[x].weights) for g in block.groups for x in g.linears if x in plan.schemes}
        copies = 1 if {Gptq, Awq} & algorithms else 0
        working = 2 * largest if Gptq in algorithms or Awq in algorithms else largest // 4
        return _FLOAT_BYTES * (weights + inside + sum(grams) + copies * max(grams, default=0) + working)

    def _rows_at_once(self, block: Block) -> Iterator[int]:
        for sample in self.samples:
            yield block.rows(sample.tokens, min(sample.tiles, TILES_AT_ONCE))


def forward_seconds(
    block: Block, parameters: int, samples: Sequence[SampleSize], matmul: Matmul, rates: Rates
) -> float:
    """Roughly how long samples take to go through a block once.

    Args:
        parameters: weights of the block's linears.
    """
    rows = sum(block.rows(sample.tokens, sample.tiles) for sample in samples)
    return (
        2 * parameters * rows / rates.flops(matmul)
        + _attention_flops(block, samples) / rates.flops("float32")
        + _ELEMENT_S * sum(group.in_features for group in block.groups) * rows / rates.cores
        + _PASS_S * len(samples)
    )


def _quantizing_s(plan: CalibrationPlan, rates: Rates, matmul: Matmul = "float32") -> float:
    shapes, groups = linear_shapes(plan.spec), [group for block in plan.blocks for group in block.groups]
    return sum(quantizing_s(group, plan.calibrated, shapes, rates, matmul) for group in groups)


def given_seconds(checkpoint: Checkpoint, recipe: Recipe | None, size_bytes: int) -> float:
    """Roughly how long it takes to read, check and write scales that are there already.

    Args:
        recipe: of `imported_recipe`, if the checkpoint is quantized already; its linears are unpacked for the check.
        size_bytes: of what is written.
    """
    seconds = size_bytes / WRITE_BYTES_PER_S
    if checkpoint.quantized is None or recipe is None:
        return seconds
    read = sum(tensor.nbytes for tensor in checkpoint.quantized.stored.values()) / READ_BYTES_PER_S
    return seconds + read + _quantizing_s(CalibrationPlan(checkpoint.spec, recipe), measured_rates())


def _attention_flops(block: Block, samples: Sequence[SampleSize]) -> float:
    spec = block.spec
    if isinstance(block, DecoderBlock):
        width = spec.language.num_heads * spec.language.head_dim
        return sum(2 * width * sample.tokens**2 for sample in samples)
    if isinstance(block, VisionBlock):
        return sum(4 * spec.vision.hidden_size * sample.tiles * positions(spec) ** 2 for sample in samples)
    return 0.0


def response_bytes(spec: ModelSpec) -> int:
    """Memory that self-generated responses take: the whole model in float32 and the cache of a few sequences."""
    language = spec.language
    tokens = 2 * MAX_RESPONSE_TOKENS + spec.tokens_per_tile
    cache = 2 * language.num_layers * language.num_kv_heads * language.head_dim * tokens * RESPONSES_AT_ONCE
    return PROCESS_BYTES + _FLOAT_BYTES * (sum(graph_parameters(spec).values()) + cache)


def response_seconds(spec: ModelSpec, prompts: int) -> float:
    """Roughly how long self-generated responses take."""
    steps = -(-prompts // RESPONSES_AT_ONCE) * MAX_RESPONSE_TOKENS
    return steps * _FLOAT_BYTES * graph_parameters(spec)[contract.DECODER] / _GENERATED_BYTES_PER_S


def require_memory_for_responses(config: BuildConfig, spec: ModelSpec, worker_bytes: int | None = None) -> None:
    """Check that prompts without an answer can be answered.

    Args:
        worker_bytes: free memory of the worker that does it; this process's if omitted.

    Raises:
        CapabilityError: the whole model in float32 does not fit into memory.
    """
    needed, available = response_bytes(spec), available_bytes() if worker_bytes is None else worker_bytes
    if needed > available:
        raise CapabilityError(
            "Calibration prompts without answers take the whole model, which answers them first.",
            where=config.calibration.data,
            expected=f"{size(needed)} of free memory",
            found=found_memory(available, worker_bytes),
            fix="give an answer with every prompt, or calibrate on a larger machine and build with --calibrated",
        )


def require_memory(costs: Sequence[CalibrationCost], worker_bytes: int | None = None) -> None:
    """Check that calibrations can be held.

    Args:
        worker_bytes: free memory of the worker that calibrates; this process's if omitted.

    Raises:
        CapabilityError: one needs more memory than there is.
    """
    most = max(costs, key=lambda cost: cost.memory_bytes)
    available = available_bytes() if worker_bytes is None else worker_bytes
    if most.memory_bytes > available:
        grams = any(most.plan.gram_groups(block) for block in most.plan.blocks)
        smaller = "by a recipe without Gram matrices, such as int4-rtn or fp8" if grams else "fewer samples"
        raise CapabilityError(
            "The calibration does not fit into memory.",
            where=f"recipe {most.plan.recipe.name}",
            expected=f"{size(most.memory_bytes)} of free memory",
            found=found_memory(available, worker_bytes),
            fix=f"pass a smaller --activation-memory, calibrate {smaller}, or on a larger machine and build with "
            "--calibrated",
        )


def calibration_cost(
    config: BuildConfig,
    spec: ModelSpec,
    recipe: Recipe,
    samples: Sequence[SampleSize],
    matmul: Matmul,
    worker_bytes: int | None = None,
) -> CalibrationCost:
    """What calibrating by a recipe takes.

    Args:
        worker_bytes: free memory of the worker that calibrates; this process's if omitted.
    """
    limit, share = activation_memory_bytes(config, worker_bytes), config.calibration.saved_share
    return CalibrationCost(CalibrationPlan(spec, recipe), samples, matmul, limit, share)
