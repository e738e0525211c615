"""What fits into the memory of GPUs, and how fast it could answer there, before anything is built.

Weights and key-value cache are what engines hold: exactly in 16 bits, to a percent where quantized (files of 4-bit
weights are 2.5 % larger, for they hold scales in float32). Activations and workspaces are an estimate: they depend on
the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from r1v_export.count import Count
from r1v_export.errors import UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.roofline.devices import DeviceSpec
from r1v_export.roofline.estimate import LayerTime, layer_times, total
from r1v_export.roofline.gpu_model import GpuModel
from r1v_export.roofline.model_costs import decoder_costs, vision_costs

GPU_SIZES_GB = (24, 48, 80, 141)
"""Memory of the GPUs that people have, in 1e9 bytes."""
USABLE = 0.9
"""Of a GPU's memory; the rest is the driver's, CUDA's context, what collectives exchange, and fragmentation."""
STEP_TOKENS = 8192
"""Tokens that a step of prefill takes at most, over all sequences: longer prompts come in pieces."""
TEXT_TOKENS = 64
"""Of a question around its image."""
NEW_TOKENS = 1024
"""Of an answer with its reasoning, where nothing else is asked for."""
_MAX_BATCH = 1 << 16


@dataclass(frozen=True)
class Requests:
    """What is asked at a time: sequences with a prompt and an answer of so many tokens.

    tiles: of the images of one request; its image tokens are part of the prompt.
    """

    prompt: int
    new_tokens: int
    tiles: int
    batch: int

    @property
    def context(self) -> int:
        """Tokens of a sequence."""
        return self.prompt + self.new_tokens


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on the fullest of the GPUs."""

    vision_weight_bytes: int
    language_weight_bytes: int
    cache_bytes_per_token: int
    cache_bytes: int
    workspace_bytes: int
    """An estimate: activations of the largest step, logits, and the embeddings of images."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.vision_weight_bytes + self.language_weight_bytes + self.cache_bytes + self.workspace_bytes


@dataclass(frozen=True)
class Fit:
    """What a GPU of a size holds.

    largest_batch: sequences of the requests' length; 0 where not even one fits.
    largest_context: tokens of each of the requests' sequences, prompt and answer; 0 where not even the prompt fits.
    """

    memory_gb: float
    usable_bytes: int
    fits: bool
    largest_batch: int
    largest_context: int


def requests(
    spec: ModelSpec,
    prompt: int | None = None,
    new_tokens: int | None = None,
    tiles: int | None = None,
    batch: int = 1,
) -> Requests:
    """Requests with what is not given filled in: an image of as many tiles as the model allows, its prompt, an answer.

    Raises:
        UsageError: the image's tokens do not fit into the prompt, or prompt and answer not into the context.
    """
    positions = spec.language.max_position_embeddings
    options = {"--tiles": tiles, "--prompt": prompt, "--max-new-tokens": new_tokens}
    given = [f"{option} {value}" for option, value in options.items() if value is not None]
    if tiles is None:
        room = spec.tiling.max_tiles_per_image if prompt is None else prompt // spec.tokens_per_tile
        tiles = min(spec.tiling.max_tiles_per_image, room)
    image_tokens = tiles * spec.tokens_per_tile
    prompt = min(image_tokens + TEXT_TOKENS, max(positions, image_tokens)) if prompt is None else prompt
    if prompt < image_tokens:
        raise UsageError(
            "The image's tokens do not fit into the prompt.",
            where=f"--prompt {prompt}",
            expected=f"at least {image_tokens}: {Count(tiles, 'tile')} of {Count(spec.tokens_per_tile, 'token')}",
            found=prompt,
            fix=f"--prompt {image_tokens + TEXT_TOKENS}, or fewer --tiles",
        )
    new_tokens = max(0, min(NEW_TOKENS, positions - prompt)) if new_tokens is None else new_tokens
    if prompt + new_tokens > positions:
        smaller = " or ".join(option.partition(" ")[0] for option in given) or "--tiles"
        raise UsageError(
            "Prompt and answer are longer than the model's context.",
            where=" ".join(given) or None,
            expected=f"at most {Count(positions, 'token')} together",
            found=f"{prompt} of the prompt and {new_tokens} of the answer",
            fix=f"pass a smaller value of {smaller}",
        )
    return Requests(prompt, new_tokens, tiles, batch)


def gpu_memory(model: GpuModel, asked: Requests) -> GpuMemory:
    """What the fullest of the GPUs holds."""
    stages = (_stage_memory(model, asked, stage) for stage in range(model.parallel.pp))
    return max(stages, key=lambda memory: memory.total_bytes)


def fit(model: GpuModel, asked: Requests, memory_gb: float) -> Fit:
    """What GPUs of a size hold of the requests."""
    usable = usable_bytes(memory_gb)
    positions = model.spec.language.max_position_embeddings

    def fits(changed: Requests) -> bool:
        return gpu_memory(model, changed).total_bytes <= usable

    shortest = max(1, asked.prompt)
    return Fit(
        memory_gb,
        usable,
        fits(asked),
        _largest(lambda batch: fits(replace(asked, batch=batch)), 1, _MAX_BATCH),
        _largest(lambda context: fits(replace(asked, new_tokens=context - asked.prompt)), shortest, positions),
    )


def usable_bytes(memory_gb: float) -> int:
    """Of a GPU with that much memory, in 1e9 bytes."""
    return round(USABLE * memory_gb * 1e9)


def step_times(model: GpuModel, asked: Requests, device: DeviceSpec) -> dict[str, LayerTime]:
    """The least time of each step on one GPU of all that share the model: vision and projector of one request, prefill
    of all prompts, and one token of every answer, half of it there already."""
    middle = asked.prompt + max(1, asked.new_tokens // 2)
    steps = {
        f"prefill, {asked.batch} x {Count(asked.prompt, 'token')}": decoder_costs(
            model, asked.batch, asked.prompt, asked.prompt
        ),
        f"decode, {asked.batch} x 1 token at {middle}": decoder_costs(model, asked.batch, 1, middle),
    }
    if asked.tiles:
        steps = {f"vision, {Count(asked.tiles, 'tile')}": vision_costs(model, _own_tiles(model, asked)), **steps}
    return {name: total(layer_times(costs, device)) for name, costs in steps.items()}


def facts(model: GpuModel, asked: Requests, device: DeviceSpec) -> dict[str, Any]:
    """Plain values for JSON."""
    memory = gpu_memory(model, asked)
    return {
        "device": asdict(device),
        "compute": model.compute,
        "kv_cache": model.kv_cache or model.compute,
        "parallel": asdict(model.parallel),
        "requests": {**asdict(asked), "context": asked.context},
        "memory_per_gpu": {**asdict(memory), "total_bytes": memory.total_bytes},
        "estimated": ["workspace_bytes"],
        "fits": {
            name: asdict(fit(model, asked, memory_gb))
            for name, memory_gb in ((device.name, device.memory_gb), *((f"{size} GB", size) for size in GPU_SIZES_GB))
        },
        "steps": {name: {**asdict(row), "bound": row.bound} for name, row in step_times(model, asked, device).items()},
    }


def _stage_memory(model: GpuModel, asked: Requests, stage: int) -> GpuMemory:
    language, tp = model.spec.language, model.parallel.tp
    vision, in_language = model.stage_weight_bytes[stage]
    layers = len(model.parallel.layers(stage, language.num_layers))
    cache = 2 * layers * language.num_kv_heads // tp * language.head_dim * model.cache_width
    return GpuMemory(
        vision_weight_bytes=round(vision),
        language_weight_bytes=round(in_language),
        cache_bytes_per_token=cache,
        cache_bytes=cache * asked.context * asked.batch,
        workspace_bytes=_workspace_bytes(model, asked),
    )


def _workspace_bytes(model: GpuModel, asked: Requests) -> int:
    """The residual stream, a norm's output, and the largest operator's operands and results: of a step of the language
    model and of one of the vision tower, for both engines keep their workspace. Rotary tables are float32."""
    language, vision, tp = model.spec.language, model.spec.vision, model.parallel.tp
    query_key_value = (language.num_heads + 2 * language.num_kv_heads) * language.head_dim
    attention = (query_key_value + language.num_heads * language.head_dim) // tp
    widest = max(attention, 3 * language.intermediate_size // tp)
    rows = min(asked.batch * asked.prompt, STEP_TOKENS)
    decoder = rows * (2 * language.hidden_size + widest) * model.width
    logits = asked.batch * language.vocab_size * 4
    rotary = language.max_position_embeddings * language.head_dim * 4
    images = asked.batch * asked.tiles * model.spec.tokens_per_tile * language.hidden_size * model.width
    tiles = _own_tiles(model, asked)
    positions = tiles * (1 + model.spec.tile_patches**2)
    tower = positions * (2 * vision.hidden_size + max(4 * vision.hidden_size, 2 * vision.intermediate_size))
    pixels = tiles * 3 * model.spec.tiling.tile_size**2 * 4
    return decoder + logits + rotary + images + tower * model.width + pixels


def _own_tiles(model: GpuModel, asked: Requests) -> int:
    """Tiles of a request that one GPU encodes, at most."""
    return math.ceil(asked.tiles / model.parallel.gpus)


def _largest(fits: Callable[[int], bool], first: int, last: int) -> int:
    """The largest number from `first` to `last` that fits, where all smaller ones do, too; 0 if none does."""
    if first > last or not fits(first):
        return 0
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if fits(middle) else (first, middle - 1)
    return first
