"""Quantization in the graph: standard Quantize/DequantizeLinear around the linears of a traced graph.

Nothing is traced again: precision is what this pass writes, from a recipe's schemes, and weights follow from the
calibration artifact when the graph is bound. A quantized linear becomes

    x -> QuantizeLinear -> DequantizeLinear -> MatMul(., DequantizeLinear(qweight, scale[, zero_point])) -> + bias

with the Q/DQ on x only where its inputs are quantized, one pair per tensor however many linears read it; dynamic
inputs are divided by a scale of each token before the pair, and multiplied after it (`onnx_tokens`). Where the
columns of the weight are in another order than x (GPTQ with act-order), a Gather puts x in that order, once for linears
that share both. A quantized key-value cache is one pair on what each layer writes into its cache: the cache holds what
FP8 or INT8 can hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from r1v_export.contract import past_key, past_value
from r1v_export.errors import UsageError
from r1v_export.exporters.graph import Derived, Rewrite
from r1v_export.exporters.graph_values import dtype_of, input_of, is_initializer, name_of, shape_of, size_of
from r1v_export.exporters.passes.transposed_weights import TRANSPOSED
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.apply.onnx_nodes import TYPES, insert_node, quantize_dequantize, unbound_initializer
from r1v_export.quantization.apply.onnx_tokens import quantize_tokens
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.groups import linear_groups
from r1v_export.quantization.kv_scales import CacheType, KVScales
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.quantization.recipe import Scheme

QWEIGHT, SCALE, ZERO_POINT, INPUT_SCALE = ".qweight", ".scale", ".zero_point", ".input_scale"
"""Suffixes of what a linear's `weight.T` turns into, and of the scale of a group's input."""
PRE_QUANT_SCALE = ".pre_quant_scale"
"""Suffix of what an imported linear multiplies its input by."""
INPUT_ORDER = ".input_order"
"""Suffix of the order that a linear's input is gathered in; the first of the linears that share it has it."""


def artifact_quantizer(artifact: Artifact, graphs: Path) -> Rewrite:
    """`quantizer` by a calibration.

    Args:
        graphs: the folder that the graph will lie in; what the calibration has there is referred to.
    """
    stored = artifact.stored_in(graphs)
    return quantizer(
        artifact.spec,
        artifact.schemes,
        artifact.linear,
        artifact.overrides,
        artifact.cache_scales,
        artifact.input_orders,
        artifact.parameters,
        {name: (tensor.file.relative_to(graphs).as_posix(), tensor.offset) for name, tensor in stored.items()},
    )


def quantizer(
    spec: ModelSpec,
    schemes: Mapping[str, Scheme],
    linear: Callable[[str], QuantizedLinear],
    overrides: Mapping[str, Callable[[], Tensor]],
    cache_scales: Mapping[str, KVScales] | None = None,
    input_orders: Mapping[str, Tensor] | None = None,
    parameters: Callable[[str], QuantizedLinear] | None = None,
    stored: Mapping[str, tuple[str, int]] | None = None,
) -> Rewrite:
    """The rewrite that quantizes a traced graph.

    Args:
        schemes: of every quantized linear, by checkpoint module name, see `recipe.resolve`.
        linear: reads one quantized linear of the calibration artifact.
        overrides: readers of the other tensors that calibration rewrote, by checkpoint name.
        cache_scales: of cached keys and values, by the attention's checkpoint name.
        input_orders: `QuantizedLinear.input_order` of every linear that has one, by checkpoint name.
        parameters: reads a quantized linear without its quantized values, where that is faster than `linear`.
        stored: file, relative to the graph's, and offset of initializers that are somewhere already, by name.
    """
    group_of = {name: group.name for group in linear_groups(spec) for name in group.linears}
    orders = input_orders or {}
    order_of = _shared_orders(orders, group_of)

    def rewrite(model: ir.Model) -> dict[str, Derived]:
        insertion = QuantizeLinears(schemes, group_of, order_of)
        insertion(model)
        derived: dict[str, Derived] = {name: _ignoring_read(read) for name, read in overrides.items()}
        for name in insertion.quantized:
            derived |= _linear_tensors(name, group_of[name], linear, parameters or linear)
        derived |= {f"{name}{INPUT_ORDER}": lambda _, order=order: order for name, order in orders.items()}  # type: ignore[misc]
        if cache_scales:
            QuantizeCache({name: scales.kind for name, scales in cache_scales.items()})(model)
            derived |= _cache_tensors(cache_scales)
        for name, (location, offset) in (stored or {}).items():
            if name in model.graph.initializers:
                _bind(model.graph.initializers[name], location, offset)
        return {name: make for name, make in derived.items() if name in model.graph.initializers}

    return rewrite


def _bind(value: ir.Value, location: str, offset: int) -> None:
    """Let an initializer refer to bytes in a file."""
    dtype, shape = dtype_of(value), shape_of(value)
    length = math.prod(shape.numpy()) * dtype.bitwidth // 8
    value.const_value = ir.ExternalTensor(location, offset, length, dtype, shape=shape, name=name_of(value))


def _shared_orders(orders: Mapping[str, Tensor], group_of: Mapping[str, str]) -> dict[str, str]:
    """Linear -> the first linear that reads the same tensor in the same order."""
    first: dict[tuple[str, bytes], str] = {}
    return {name: first.setdefault((group_of[name], order.numpy().tobytes()), name) for name, order in orders.items()}


def _ignoring_read(read: Callable[[], Tensor]) -> Derived:
    return lambda _: read()


def _linear_tensors(
    name: str, group: str, linear: Callable[[str], QuantizedLinear], parameters: Callable[[str], QuantizedLinear]
) -> dict[str, Derived]:
    """How each tensor of a quantized linear is made, in the graph's [in, out] order."""
    weight = f"{name}.weight{TRANSPOSED}"
    return {
        weight + QWEIGHT: lambda _: linear(name).qweight.t(),
        weight + SCALE: lambda _: parameters(name).scale.t(),
        weight + ZERO_POINT: lambda _: _required(parameters(name).zero_point, name).t(),
        group + INPUT_SCALE: lambda _: _required(parameters(name).input_scale, name),
        name + PRE_QUANT_SCALE: lambda _: _required(parameters(name).pre_quant_scale, name),
    }


def _cache_tensors(cache_scales: Mapping[str, KVScales]) -> dict[str, Derived]:
    return {
        f"{name}.{what}{SCALE}": lambda _, scale=scale: torch.tensor(scale)  # type: ignore[misc]
        for name, scales in cache_scales.items()
        for what, scale in scales.items()
    }


def _required(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise UsageError(
            "The calibration lacks a tensor that the recipe requires.",
            where=name,
            expected="a zero point and an input scale as the recipe's scheme says",
            fix="calibrate again with this recipe",
        )
    return tensor


class QuantizeLinears(ir.passes.InPlacePass):
    """Put Q/DQ at the MatMuls of the linears that have a scheme; the new initializers are bound later.

    Ensures that no quantized linear's 16-bit weight is left.

    Args:
        schemes: of every quantized linear, by checkpoint name.
        group_of: linear -> the name of its group.
        order_of: linear whose input is gathered -> the linear that the order is named after.

    Attributes:
        quantized: the linears that this graph holds, after the pass ran.
    """

    def __init__(
        self, schemes: Mapping[str, Scheme], group_of: Mapping[str, str], order_of: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.schemes, self.group_of, self.order_of = schemes, group_of, order_of or {}
        self.quantized: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        inputs: dict[str, ir.Value] = {}
        gathered: dict[str, ir.Value] = {}
        for node in list(graph):
            name = _linear_name(node)
            if name is None or name not in self.schemes:
                continue
            scheme = self.schemes[name]
            weight = input_of(node, 1)
            node.replace_input_with(1, self._dequantized_weight(graph, node, weight, scheme))
            graph.initializers.pop(name_of(weight))
            if scheme.has_pre_quant_scale:
                node.replace_input_with(0, self._multiplied_input(graph, node, name))
            if scheme.inputs is not None:
                group = self.group_of[name]
                if group not in inputs:
                    inputs[group] = self._quantized_input(graph, node, group, scheme)
                node.replace_input_with(0, inputs[group])
            if scheme.has_input_order:
                order = self.order_of[name]
                if order not in gathered:
                    gathered[order] = self._gathered_input(graph, node, order)
                node.replace_input_with(0, gathered[order])
            self.quantized.append(name)
        return ir.passes.PassResult(model, bool(self.quantized))

    def ensures(self, model: ir.Model) -> None:
        left = [name for name in self.schemes if f"{name}.weight{TRANSPOSED}" in model.graph.initializers]
        if left:
            raise ir.passes.PostconditionError(f"not quantized: {', '.join(left)}")

    def _dequantized_weight(self, graph: ir.Graph, node: ir.Node, weight: ir.Value, scheme: Scheme) -> ir.Value:
        weights = scheme.weights
        features_in, features_out = shape_of(weight).numpy()
        scale_shape: tuple[int, ...]
        attributes: dict[str, int]
        if weights.group_size is None:
            scale_shape, attributes = (features_out,), {"axis": 1}
        else:
            scale_shape = (features_in // weights.group_size, features_out)
            attributes = {"axis": 0, "block_size": weights.group_size}
        qweight_dtype = TYPES[weights.type]
        operands = [
            unbound_initializer(graph, f"{weight.name}{QWEIGHT}", qweight_dtype, (features_in, features_out)),
            unbound_initializer(graph, f"{weight.name}{SCALE}", ir.DataType.FLOAT, scale_shape),
        ]
        if weights.type == "uint4":
            operands.append(unbound_initializer(graph, f"{weight.name}{ZERO_POINT}", qweight_dtype, scale_shape))
        return insert_node(
            graph, node, "DequantizeLinear", operands, attributes, weight.dtype, weight.shape, weight.name
        )

    def _multiplied_input(self, graph: ir.Graph, node: ir.Node, name: str) -> ir.Value:
        x, weight = input_of(node, 0), input_of(node, 1)
        pre_quant_scale = unbound_initializer(graph, f"{name}{PRE_QUANT_SCALE}", dtype_of(x), (size_of(weight, 0),))
        return insert_node(graph, node, "Mul", [x, pre_quant_scale], {}, x.dtype, x.shape, f"{name}.multiplied")

    def _gathered_input(self, graph: ir.Graph, node: ir.Node, name: str) -> ir.Value:
        x, weight = input_of(node, 0), input_of(node, 1)
        order = unbound_initializer(graph, f"{name}{INPUT_ORDER}", ir.DataType.INT32, (size_of(weight, 0),))
        return insert_node(graph, node, "Gather", [x, order], {"axis": -1}, x.dtype, x.shape, f"{name}.input")

    def _quantized_input(self, graph: ir.Graph, node: ir.Node, group: str, scheme: Scheme) -> ir.Value:
        assert scheme.inputs is not None
        if scheme.inputs.mode == "dynamic":
            return quantize_tokens(graph, node, input_of(node, 0), scheme.inputs.type, group)
        x, names = input_of(node, 0), (group, f"{group}.input")
        return _quantize_dequantize(graph, node, x, f"{group}{INPUT_SCALE}", TYPES[scheme.inputs.type], names)


class QuantizeCache(ir.passes.InPlacePass):
    """Put Q/DQ on the keys and values that decoder layers write; the scales are bound later.

    The cache itself stays in the graph's dtype, as the contract says.

    Args:
        attentions: what each layer's cache is rounded to, by its attention's checkpoint name, in model order.
    """

    def __init__(self, attentions: Mapping[str, CacheType]) -> None:
        super().__init__()
        self.attentions = attentions

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        written = {
            past: (f"{name}.{what}", TYPES[kind])
            for layer, (name, kind) in enumerate(self.attentions.items())
            for what, past in (("key", past_key(layer)), ("value", past_value(layer)))
        }
        writes = [node for node in graph if node.op_type == "TensorScatter"]
        for node in writes:
            past, new = node.inputs[:2]
            assert past is not None
            assert new is not None
            name, qweight_dtype = written[past.name or ""]
            names = (name, f"{name}.cached")
            node.replace_input_with(1, _quantize_dequantize(graph, node, new, f"{name}{SCALE}", qweight_dtype, names))
        return ir.passes.PassResult(model, bool(writes))


def _quantize_dequantize(
    graph: ir.Graph, before: ir.Node, x: ir.Value, scale_name: str, qweight_dtype: ir.DataType, names: tuple[str, str]
) -> ir.Value:
    """x through a Q/DQ pair with one scale, whose content is bound later; `names` are those of the two nodes."""
    scale = unbound_initializer(graph, scale_name, ir.DataType.FLOAT, ())
    return quantize_dequantize(graph, before, x, scale, qweight_dtype, names)


def _linear_name(node: ir.Node) -> str | None:
    """The linear that a MatMul computes, by the name of its weight."""
    if node.op_type != "MatMul" or node.domain:
        return None
    weight = node.inputs[1]
    suffix = f".weight{TRANSPOSED}"
    if not is_initializer(weight) or not name_of(weight).endswith(suffix):
        return None
    return name_of(weight).removesuffix(suffix)
