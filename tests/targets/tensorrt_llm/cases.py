"""Quantized models without a calibration: weights rounded to nearest, inputs with made-up scales. Fast, and of every
format; what matters here is where each number goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.algorithms.rtn import round_to_nearest, round_to_one_scale
from r1v_export.quantization.artifact.artifact import QWEIGHT, SCALES, Artifact, Stats
from r1v_export.quantization.artifact.block_tensors import qweight_tensors, scale_tensors
from r1v_export.quantization.artifact.documents import RECIPE, STATS, checkpoint_fingerprint
from r1v_export.quantization.groups import linear_groups
from r1v_export.quantization.kv_scales import KVScales
from r1v_export.quantization.quantized_block import QuantizedBlock
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.quantization.recipe import Recipe, Scheme, parse, resolve

LANGUAGE = "language_model.*"

SCHEMES = {
    "fp8": "{weights: {type: fp8, granularity: tensor, algorithm: rtn}, inputs: {type: fp8, mode: static}}",
    "fp8-rowwise": "{weights: {type: fp8, granularity: channel, algorithm: rtn}, inputs: {type: fp8, mode: dynamic}}",
    "int8": "{weights: {type: int8, granularity: channel, algorithm: rtn}, inputs: {type: int8, mode: static}}",
    "int4": "{weights: {type: int4, granularity: group, group_size: 64, algorithm: rtn}}",
    "w4a8": "{weights: {type: int4, granularity: group, group_size: 128, algorithm: rtn}, "
    "inputs: {type: fp8, mode: static}}",
    "uint4": "{weights: {type: uint4, granularity: group, group_size: 64, algorithm: rtn}}",
}
"""Every format that TensorRT-LLM has of ours, as a recipe's scheme."""


CACHE_SCALES = {"fp8": (0.25, 0.125), "int8": (0.02, 0.02)}
"""Of keys and values; an INT8 cache has one."""


def recipe(*rules: str, kv_cache: str = "null") -> Recipe:
    """A recipe of rules `modules: scheme`."""
    lines = [f"  - {{modules: ['{rule.split(': ', 1)[0]}'], scheme: {rule.split(': ', 1)[1]}}}" for rule in rules]
    return parse("\n".join(["name: test", "description: test", "rules:", *lines, f"kv_cache: {kv_cache}"]))


def of(scheme: str, kv_cache: str = "null") -> Recipe:
    """The whole language model in one of `SCHEMES`."""
    return recipe(f"{LANGUAGE}: {SCHEMES[scheme]}", kv_cache=kv_cache)


def make_artifact(checkpoint: Checkpoint, recipe: Recipe, folder: Path) -> Artifact:
    """A calibration of a checkpoint, as far as its files go."""
    schemes = resolve(recipe, checkpoint.spec)
    (folder / QWEIGHT).mkdir(parents=True)
    scales: dict[str, torch.Tensor] = {}
    for name in dict.fromkeys(group.block for group in linear_groups(checkpoint.spec)):
        block = _block(checkpoint, name, schemes, recipe)
        scales |= scale_tensors(name, block)
        if block.linears:
            save_file(qweight_tensors(block, checkpoint.spec), folder / QWEIGHT / f"{name}.safetensors")
    save_file(scales, folder / SCALES)
    (folder / RECIPE).write_text(recipe.to_yaml())
    stats = Stats(
        fingerprint="",
        checkpoint=checkpoint_fingerprint(checkpoint),
        compute="float32",
        image_policy=None,
        samples=(),
        inputs={},
        warnings=(),
    )
    (folder / STATS).write_text(stats.model_dump_json())
    return Artifact.open(folder, checkpoint)


def _block(checkpoint: Checkpoint, name: str, schemes: dict[str, Scheme], recipe: Recipe) -> QuantizedBlock:
    linears: dict[str, QuantizedLinear] = {}
    for number, group in enumerate(group for group in linear_groups(checkpoint.spec) if group.block == name):
        found = [linear for linear in group.linears if linear in schemes]
        weights = {linear: checkpoint.read(f"{linear}.weight").float() for linear in found}
        for linear in found:
            absmax = torch.stack([weight.abs().max() for weight in weights.values()]).max()
            linears[linear] = _linear(weights[linear], schemes[linear], absmax, 0.01 * (number + 1))
    # A norm that took up a scale, as AWQ and SmoothQuant leave it: not a number that 16 bits hold exactly.
    norm = f"{name}.post_attention_layernorm.weight"
    overrides = (
        {norm: checkpoint.read(norm).float() * 1.0001} if linears and name.startswith("language_model.model.") else {}
    )
    decoder_layer = name.startswith("language_model.model.layers.")
    kv = KVScales(recipe.kv_cache, *CACHE_SCALES[recipe.kv_cache]) if recipe.kv_cache and decoder_layer else None
    return QuantizedBlock(linears, overrides, kv)


def _linear(weight: torch.Tensor, scheme: Scheme, absmax: torch.Tensor, input_scale: float) -> QuantizedLinear:
    options = scheme.weights
    if options.granularity == "tensor":
        linear = round_to_one_scale(weight, options.type, absmax)
    else:
        linear = round_to_nearest(weight, options.type, options.group_size)
    if scheme.inputs is None:
        return linear
    scale = torch.tensor(input_scale) if scheme.inputs.mode == "static" else None
    return replace(linear, input_type=scheme.inputs.type, input_scale=scale)
