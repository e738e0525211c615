"""Quantized linears of a checkpoint, found by their tensors and checked against their format's table, from headers
alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from r1v_export.checkpoint.names import expected_tensors
from r1v_export.checkpoint.quantized.layout import FLOATS, LinearLayout, QuantFormat, StoredLinear, unsupported
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.count import Count
from r1v_export.errors import CheckpointError
from r1v_export.model_spec import ModelSpec

_COPY = "download or copy the checkpoint again, or check its quantization settings"


@dataclass(frozen=True)
class Quantized:
    """What of a checkpoint is quantized."""

    format: QuantFormat
    linears: Mapping[str, StoredLinear]
    """By canonical name of the linear, in model order."""
    cache_scales: tuple[tuple[StoredTensor, StoredTensor], ...]
    """Of each decoder layer's keys and values, float32 scalars; empty where the cache is not quantized."""

    @property
    def stored(self) -> dict[str, StoredTensor]:
        """Every tensor by the name it is stored under."""
        tensors = [tensor for linear in self.linears.values() for part in linear.parts for tensor in part.values()]
        return {tensor.name: tensor for tensor in (*tensors, *(scale for pair in self.cache_scales for scale in pair))}


def find_quantized(
    quant_format: QuantFormat,
    spec: ModelSpec,
    wanted: Mapping[str, tuple[str, ...]],
    stored: Mapping[str, StoredTensor],
) -> Quantized:
    """Find a checkpoint's quantized linears and check them against their format.

    Args:
        wanted: canonical name -> the stored names that it would be joined from, were it not quantized.
        stored: everything that the files hold, by stored name.

    Raises:
        CheckpointError: tensors of a quantized linear are missing, of the wrong shape or dtype, or there twice: in 16
            bits too.
    """
    linears: dict[str, StoredLinear] = {}
    for canonical, shape in expected_tensors(spec).items():
        names = [name.removesuffix(".weight") for name in wanted[canonical]]
        marked = [f"{name}.{quant_format.marker}" in stored for name in names]
        if not canonical.endswith(".weight") or len(shape) != 2 or not any(marked):
            continue
        if not all(marked):
            missing = [
                f"{name}.{quant_format.marker}" for name in names if f"{name}.{quant_format.marker}" not in stored
            ]
            raise _missing(canonical, missing, quant_format.method)
        layouts = [quant_format.layout(name, shape[1]) for name in names]
        if any(layout.name != layouts[0].name for layout in layouts):
            raise _error("Parts of one linear are quantized in different ways.", canonical, None, layouts)
        part_shape = (shape[0] // len(names), shape[1])
        parts = tuple(_part(name, layout, part_shape, stored) for name, layout in zip(names, layouts, strict=True))
        layout = layouts[0]
        if layout.per_tensor and len({float(part[quant_format.marker].read()) for part in parts}) > 1:
            layout = replace(
                layout, name=f"{layout.name}, one for each of {Count(len(parts), 'part')}", per_tensor=False
            )
        linears[canonical.removesuffix(".weight")] = StoredLinear(layout, parts, (shape[0], shape[1]))
    settled = quant_format.settle(linears)
    if settled is not quant_format:
        linears = {
            name: replace(linear, layout=settled.layout(name, linear.shape[1])) for name, linear in linears.items()
        }
    return Quantized(settled, linears, _cache_scales(quant_format, spec, wanted, stored))


def _part(
    linear: str, layout: LinearLayout, shape: tuple[int, int], stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    if layout.one_group and layout.group_size is None:
        raise unsupported(
            "One scale for each output feature is not supported for this linear.",
            linear,
            "in-features that are a multiple of 32",
            shape[1],
        )
    if layout.group_size is not None and shape[1] % layout.group_size:
        groups = f"in-features that are a multiple of {layout.group_size}"
        raise _error("Groups do not divide a linear's inputs.", linear, groups, f"{shape[1]} in-features")
    _refuse_both(linear, layout, stored)
    needed = [suffix for suffix, rule in layout.tensors.items() if not rule.optional]
    missing = [f"{linear}.{suffix}" for suffix in needed if f"{linear}.{suffix}" not in stored]
    if missing:
        raise _missing(linear, missing, layout.name)
    part = {suffix: stored[f"{linear}.{suffix}"] for suffix in layout.tensors if f"{linear}.{suffix}" in stored}
    for suffix, tensor in part.items():
        rule = layout.tensors[suffix]
        expected = rule.shape_for(*shape, None if layout.one_group else layout.group_size)
        if tensor.shape not in (expected, expected or (1,)) or tensor.dtype not in rule.dtypes:
            dtypes = " or ".join(_name(dtype) for dtype in rule.dtypes)
            raise _error(
                f"A tensor of a quantized linear ({layout.name}) has the wrong shape or dtype.",
                f"{tensor.name} in {tensor.file.name}",
                f"{dtypes} {list(expected)}",
                f"{_name(tensor.dtype)} {list(tensor.shape)}",
            )
    return part


def _refuse_both(linear: str, layout: LinearLayout, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse a 16-bit weight next to quantized values, or in place of them: which of the two is meant is unknown."""
    weight = stored.get(f"{linear}.weight")
    if weight is None or weight.dtype not in FLOATS:
        return
    scales = [
        f"{linear}.{suffix}" for suffix in layout.tensors if suffix != "weight" and f"{linear}.{suffix}" in stored
    ]
    raise _error(
        "A linear is stored both quantized and unquantized.",
        linear,
        f"{layout.name}, or a weight alone",
        f"{_name(weight.dtype)} {weight.name} and {', '.join(scales)}",
    )


def _cache_scales(
    quant_format: QuantFormat,
    spec: ModelSpec,
    wanted: Mapping[str, tuple[str, ...]],
    stored: Mapping[str, StoredTensor],
) -> tuple[tuple[StoredTensor, StoredTensor], ...]:
    pairs: list[tuple[StoredTensor, StoredTensor]] = []
    if not quant_format.cache_scales:
        return ()
    for layer in range(spec.language.num_layers):
        (norm,) = wanted[f"language_model.model.layers.{layer}.input_layernorm.weight"]
        prefix = norm.removesuffix("input_layernorm.weight")
        candidates = [(prefix + key, prefix + value) for key, value in quant_format.cache_scales]
        key, value = next((pair for pair in candidates if pair[0] in stored), candidates[0])
        missing = [name for name in (key, value) if name not in stored]
        if missing:
            where = f"the key-value cache of decoder layer {layer}"
            raise _missing(where, missing, f"{quant_format.method} with an FP8 key-value cache")
        for name in (key, value):
            if stored[name].shape not in ((), (1,)) or stored[name].dtype not in FLOATS:
                found = f"{_name(stored[name].dtype)} {list(stored[name].shape)}"
                expected = "float32 [], or the same in 16 bits"
                raise _error("A scale of the key-value cache has the wrong shape or dtype.", name, expected, found)
        pairs.append((stored[key], stored[value]))
    return tuple(pairs)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _missing(what: str, names: Collection[str], quant_format: str) -> CheckpointError:
    return _error("A quantized linear is incomplete.", what, ", ".join(names), f"none of that name, in {quant_format}")


def _error(what: str, where: str, expected: object, found: object) -> CheckpointError:
    if isinstance(found, list):
        found = ", ".join(layout.name for layout in found)
    return CheckpointError(what, where=where, expected=expected, found=found, fix=_COPY)
