"""What calibration leaves behind, and its strict reader.

    stats.json          where the numbers come from: checkpoint, samples, and a summary of every input's activations
    recipe.yaml         the recipe, with every default written out
    scales.safetensors  {linear}.weight_scale .weight_zero_point .input_scale .pre_quant_scale .input_order,
                        {first linear of a group}.smoothing_scale, {layer}.self_attn.key_scale .value_scale; none of
                        `rounded_weights.uncalibrated_linears`
    qweight/{block}.safetensors quantized values that do not follow from the checkpoint and the scales, see
                                `rounded_weights` and `qweight_layout`, and tensors that an import rewrote, under their
                                own names
    qweight.json                files of quantized values that a bundle's graphs or checkpoints refer to, and that lie
                                there, see `qweight_places`

The same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.listing import shorten
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.checkpoint.quantized.layout import StoredLinear
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.errors import BundleError
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.artifact.block_tensors import SMOOTHING_SCALE
from r1v_export.quantization.artifact.documents import AGAIN, open_tensors, read_recipe, require_origin
from r1v_export.quantization.artifact.qweight_layout import QweightLayout, Values, layout_of
from r1v_export.quantization.artifact.qweight_places import QWEIGHT, placed_files
from r1v_export.quantization.calibration_stats import Stats
from r1v_export.quantization.groups import linear_shapes
from r1v_export.quantization.kv_scales import ONE_SCALE, KVScales, key_name, value_name
from r1v_export.quantization.number_formats import QWEIGHT_DTYPES
from r1v_export.quantization.quant_params import QuantParams
from r1v_export.quantization.quantized_linear import QuantizedLinear, not_finite
from r1v_export.quantization.recipe import Imported, Recipe, Scheme, resolve
from r1v_export.quantization.rounded_weights import round_weight, stored_linears, uncalibrated_linears
from r1v_export.quantization.smoothing import Smoothing, smoothed_groups

SCALES = "scales.safetensors"


@dataclass(frozen=True)
class Artifact:
    """A calibration, checked against its checkpoint. Made by `Artifact.open`; tensors are read when asked for."""

    folder: Path
    spec: ModelSpec
    stats: Stats
    recipe: Recipe
    schemes: Mapping[str, Scheme]
    """Of every quantized linear, in model order."""
    _scales: Mapping[str, StoredTensor]
    _qweight: Mapping[str, StoredTensor]
    _checkpoint: Checkpoint
    _kept: dict[str, QuantizedLinear] = field(default_factory=dict)
    """`parameters` of the last linear that follows from the checkpoint."""

    @classmethod
    def open(cls, folder: Path, checkpoint: Checkpoint) -> Artifact:
        """Read a calibration.

        Raises:
            BundleError: a file is missing, damaged or of another version, it is the calibration of another
                checkpoint, a linear is missing or superfluous, or a tensor has the wrong shape, type or value.
        """
        stats = require_origin(folder, checkpoint)
        recipe = read_recipe(folder)
        qweight: dict[str, StoredTensor] = {}
        for path in (*sorted((folder / QWEIGHT).glob("*.safetensors")), *placed_files(folder)):
            qweight |= open_tensors(path)
        schemes = resolve(recipe, checkpoint.spec)
        scales = open_tensors(folder / SCALES)
        artifact = cls(folder, checkpoint.spec, stats, recipe, schemes, scales, qweight, checkpoint)
        artifact._check()
        return artifact

    @property
    def quantizes_inputs(self) -> bool:
        """Whether any linear rounds its input too, or attention its cached keys and values."""
        return self.recipe.kv_cache is not None or any(scheme.inputs for scheme in self.schemes.values())

    def linear(self, name: str) -> QuantizedLinear:
        """A quantized linear by its checkpoint name, its quantized values unpacked.

        Raises:
            CheckpointError: its weight is NaN or infinite, and no calibration has found that.
        """
        if self._follows(name):
            weights = self.schemes[name].weights
            weight = self._checkpoint.read(f"{name}.weight")
            linear = QuantParams.round_to_nearest(weight, weights.type, weights.group_size)
            parameters = self._keep_parameters(name, weight, linear)
            return replace(parameters, qweight=linear.qweight)
        layout = self.layouts.get(name)
        if layout is None:
            return self._linear(name, self._following_qweight(name))
        parts = [self._qweight[tensor].read() for tensor in layout.names(name, self.spec)]
        return self._linear(name, layout.decode(parts[0] if len(parts) == 1 else torch.cat(parts), self.values(name)))

    @cached_property
    def layouts(self) -> dict[str, QweightLayout]:
        """How the quantized values lie in their files, of the linears that have any there."""
        found = {name: layout_of(name, self._qweight, self.spec) for name in self.schemes}
        return {name: layout for name, layout in found.items() if layout is not None}

    def values(self, name: str) -> Values:
        """What a layout needs to know of a linear."""
        order = self._optional(f"{name}.input_order")
        return Values(self._shapes[name], self.schemes[name].weights.type, order)

    def own_files(self) -> dict[Path, list[str]]:
        """The files in the calibration's own folder that hold nothing but quantized values, and whose they are."""
        linears: dict[Path, list[str]] = {}
        for name, layout in self.layouts.items():
            linears.setdefault(self._qweight[layout.names(name, self.spec)[0]].file, []).append(name)
        others = {self._qweight[name].file for name in self._stored_overrides}
        return {file: found for file, found in linears.items() if file.parent.name == QWEIGHT and file not in others}

    def stored_in(self, folder: Path) -> dict[str, StoredTensor]:
        """The tensors of quantized values that lie below a folder of the bundle, by their name in the file."""
        return {name: tensor for name, tensor in self._qweight.items() if tensor.file.is_relative_to(folder)}

    def _following_qweight(self, name: str) -> Tensor:
        """Quantized values that are not stored, because they follow from the checkpoint."""
        scheme = self.schemes[name]
        if isinstance(scheme.weights, Imported):
            return self._imported[name].decode().qweight
        scale, zero_point = self._scales[f"{name}.weight_scale"].read(), self._optional(f"{name}.weight_zero_point")
        weight = self._checkpoint.read(f"{name}.weight")
        return round_weight(name, weight, scheme, scale, zero_point, self._smoothing)

    def parameters(self, name: str) -> QuantizedLinear:
        """The same without its quantized values, which are on device "meta"."""
        weights = self.schemes[name].weights
        qweight = torch.empty(self._shapes[name], dtype=QWEIGHT_DTYPES[weights.type], device="meta")
        if not self._follows(name):
            return self._linear(name, qweight)
        if name not in self._kept:
            weight = self._checkpoint.read(f"{name}.weight")
            params = QuantParams.from_weight(weight, weights.type, weights.group_size)
            self._keep_parameters(name, weight, params.linear(qweight))
        return self._kept[name]

    def _follows(self, name: str) -> bool:
        """Whether all there is of a linear follows from the checkpoint."""
        return f"{name}.weight_scale" not in self._scales

    def _keep_parameters(self, name: str, weight: Tensor, linear: QuantizedLinear) -> QuantizedLinear:
        """`parameters` of a linear whose weight has just been read, for who writes its scales behind its values."""
        # NumPy, because torch would share so little out over threads, and wait for cores that have other work.
        if not np.isfinite(linear.scale.numpy()).all():
            raise not_finite(f"{name}.weight", weight)
        inputs = self.schemes[name].inputs
        self._kept.clear()
        self._kept[name] = replace(
            linear, qweight=linear.qweight.to("meta"), input_type=inputs.type if inputs else None
        )
        return self._kept[name]

    @cached_property
    def _smoothing(self) -> Smoothing:
        groups = smoothed_groups(self.spec, self.schemes)
        return Smoothing(groups, lambda group: self._scales[f"{group}{SMOOTHING_SCALE}"].read())

    @property
    def _imported(self) -> Mapping[str, StoredLinear]:
        """The checkpoint's own quantized linears."""
        return self._checkpoint.quantized.linears if self._checkpoint.quantized else {}

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        return linear_shapes(self.spec)

    def _linear(self, name: str, qweight: Tensor) -> QuantizedLinear:
        scheme = self.schemes[name]
        return QuantizedLinear(
            qweight=qweight,
            weight_type=scheme.weights.type,
            scale=self._scales[f"{name}.weight_scale"].read(),
            zero_point=self._optional(f"{name}.weight_zero_point"),
            group_size=scheme.weights.group_size,
            input_type=scheme.inputs.type if scheme.inputs else None,
            input_scale=self._optional(f"{name}.input_scale"),
            pre_quant_scale=self._optional(f"{name}.pre_quant_scale"),
            input_order=self._optional(f"{name}.input_order"),
        )

    def scales(self, name: str) -> tuple[Tensor, Tensor | None]:
        """A linear's weight and static input scales, without reading its quantized values."""
        linear = self.parameters(name)
        return linear.scale, linear.input_scale

    def linears(self) -> Iterator[tuple[str, QuantizedLinear]]:
        """Every quantized linear, in model order."""
        return ((name, self.linear(name)) for name in self.schemes)

    @cached_property
    def input_orders(self) -> dict[str, Tensor]:
        """`QuantizedLinear.input_order` of the linears that have one, by name."""
        names = [name for name, scheme in self.schemes.items() if scheme.has_input_order]
        return {name: self._scales[f"{name}.input_order"].read() for name in names}

    @cached_property
    def overrides(self) -> dict[str, Callable[[], Tensor]]:
        """Readers of the tensors that an algorithm rewrote, whole and float32, by checkpoint name."""
        quantized = {f"{name}.weight" for name in self.schemes}
        rescaled = sorted(name for name in self._smoothing.tensors if name not in quantized)
        return {name: partial(self._rescaled, name) for name in rescaled} | self._stored_overrides

    def _rescaled(self, name: str) -> Tensor:
        return self._smoothing.rescaled(name, self._checkpoint.read(name))

    @property
    def _stored_overrides(self) -> dict[str, Callable[[], Tensor]]:
        values = {name for linear, layout in self.layouts.items() for name in layout.names(linear, self.spec)}
        return {name: stored.read for name, stored in self._qweight.items() if name not in values}

    def kv_scales(self, layer: int) -> KVScales | None:
        """Scales of the keys and values that a decoder layer caches; None where the cache is not quantized."""
        if self.recipe.kv_cache is None:
            return None
        block = f"language_model.model.layers.{layer}"
        names = (f"{key_name(block)}_scale", f"{value_name(block)}_scale")
        key, value = (float(self._scales[name].read()) for name in names)
        return KVScales(self.recipe.kv_cache, key, value)

    @property
    def cache_scales(self) -> dict[str, KVScales]:
        """Scales of cached keys and values by the attention's name; empty where the cache is not quantized."""
        layers = range(self.spec.language.num_layers)
        found = {f"language_model.model.layers.{layer}.self_attn": self.kv_scales(layer) for layer in layers}
        return {name: scales for name, scales in found.items() if scales is not None}

    def _optional(self, name: str) -> Tensor | None:
        return self._scales[name].read() if name in self._scales else None

    def _check(self) -> None:
        self._check_names()
        self._check_scale_shapes()
        tensors = expected_tensors(self.spec)
        for name, scheme in self.schemes.items():
            # Any quantized value is valid, so only dtype and shape are checked; the values stay in their file.
            self._check_stored(name)
            if self._follows(name):
                continue
            linear = self.parameters(name)
            if problem := linear.validate():
                raise self._bad(name, "what the recipe says, with positive, finite scales", problem)
            if scheme.weights.granularity == "tensor" and bool((linear.scale != linear.scale[0]).any()):
                lowest, highest = float(linear.scale.min()), float(linear.scale.max())
                where = f"{self.folder / SCALES}: {name}.weight_scale"
                raise self._bad(name, "one scale for the whole weight", f"{lowest:g} to {highest:g}", where)
        for name, read in self._stored_overrides.items():
            tensor = read()
            if tuple(tensor.shape) != tensors[name] or tensor.dtype != torch.float32 or not tensor.isfinite().all():
                expected = f"finite numbers, float32 {tensors[name]}"
                raise self._bad(name, expected, f"{tensor.dtype} {tuple(tensor.shape)}")
        for group in smoothed_groups(self.spec, self.schemes):
            scale_I = self._smoothing.read_scale(group.name)
            if not bool((scale_I.isfinite() & (scale_I > 0)).all()):
                where = f"{self.folder / SCALES}: {group.name}{SMOOTHING_SCALE}"
                raise self._bad(group.name, "positive, finite numbers", "others", where)
        for layer in range(self.spec.language.num_layers):
            self._check_cache(layer)

    def _check_stored(self, name: str) -> None:
        layout = self.layouts.get(name)
        if layout is None:
            if isinstance(self.schemes[name].weights, Imported):
                self._check_imported(name)
        elif problem := layout.problem(
            [self._qweight[part] for part in layout.names(name, self.spec)], self.values(name)
        ):
            raise self._bad(name, *problem)

    def _check_imported(self, name: str) -> None:
        weights, found = self.schemes[name].weights, self._imported.get(name)
        expected = (weights.type, weights.group_size)
        own = (found.layout.qweight_type, found.layout.group_size) if found else None
        if own != expected:
            kind = f"{weights.type} values" + (f" in groups of {weights.group_size}" if weights.group_size else "")
            raise self._bad(name, f"{kind} in the checkpoint", own or "none")

    def _check_cache(self, layer: int) -> None:
        cache, what = self.kv_scales(layer), f"the key-value cache of decoder layer {layer}"
        if cache is None:
            return
        for _, scale in cache.items():
            if not 0 < scale < float("inf"):
                raise self._bad(what, "positive, finite scales", scale)
        if cache.kind in ONE_SCALE and cache.key != cache.value:
            raise self._bad(what, f"one scale, as {cache.kind} caches have", f"{cache.key:g} and {cache.value:g}")

    def _check_names(self) -> None:
        scales, known = set(self._expected_scales()), set(expected_tensors(self.spec))
        following = uncalibrated_linears(self.spec, self.schemes) - self.layouts.keys()
        optional = {f"{name}.{what}" for name in following for what in ("weight_scale", "weight_zero_point")}
        needed = (scales - optional) - set(self._scales)
        needed |= {f"{name}.qweight" for name in stored_linears(self.schemes) - self.layouts.keys()}
        _refuse("lacks tensors that its recipe calls for", needed, self)
        _refuse("holds tensors that its recipe does not call for", set(self._scales) - scales, self)
        _refuse("holds tensors that the model does not have", set(self._stored_overrides) - known, self)

    def _check_scale_shapes(self) -> None:
        for name, (owner, dtype, shape) in self._expected_scales().items():
            stored = self._scales.get(name)
            if stored and (stored.dtype, stored.shape) != (dtype, shape):
                where = f"{self.folder / SCALES}: {name}"
                raise self._bad(owner, _describe(dtype, shape), _describe(stored.dtype, stored.shape), where)

    def _expected_scales(self) -> dict[str, tuple[str, torch.dtype, tuple[int, ...]]]:
        """Every scale tensor that the recipe calls for, also those that follow from the checkpoint (calibrations of
        earlier versions hold them), by name: what it belongs to, its dtype and its shape."""
        expected: dict[str, tuple[str, torch.dtype, tuple[int, ...]]] = {}
        for name, scheme in self.schemes.items():
            (out_features, in_features), size = self._shapes[name], scheme.weights.group_size
            shape = (out_features,) if size is None else (out_features, in_features // size)
            expected[f"{name}.weight_scale"] = (name, torch.float32, shape)
            if scheme.weights.type == "uint4":
                expected[f"{name}.weight_zero_point"] = (name, torch.int8, shape)
            if scheme.inputs is not None and scheme.inputs.mode == "static":
                expected[f"{name}.input_scale"] = (name, torch.float32, ())
            if scheme.has_pre_quant_scale:
                expected[f"{name}.pre_quant_scale"] = (name, torch.float32, (in_features,))
            if scheme.has_input_order:
                expected[f"{name}.input_order"] = (name, torch.int32, (in_features,))
        for group in smoothed_groups(self.spec, self.schemes):
            expected[f"{group.name}{SMOOTHING_SCALE}"] = (group.name, torch.float32, (group.in_features,))
        if self.recipe.kv_cache is None:
            return expected
        for layer in range(self.spec.language.num_layers):
            for cached_name in (key_name, value_name):
                name = f"{cached_name(f'language_model.model.layers.{layer}')}_scale"
                expected[name] = (f"the key-value cache of decoder layer {layer}", torch.float32, ())
        return expected

    def _bad(self, what: str, expected: object, found: object, where: object = None) -> BundleError:
        where = where or self.folder
        return BundleError(
            f"The calibration of {what} is damaged.", where=where, expected=expected, found=found, fix=AGAIN
        )


def _describe(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} of shape {list(shape)}"


def _refuse(what: str, names: set[str], artifact: Artifact) -> None:
    if names:
        raise BundleError(f"The calibration {what}.", where=artifact.folder, found=shorten(sorted(names)), fix=AGAIN)
