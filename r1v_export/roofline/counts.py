"""FLOPs and bytes of every matrix product, convolution and attention of a graph, by layer.

What is counted: each weight is read once at its stored width, each operator's operands and result move once, and all
that is pointwise (norms, activations, residuals, Q/DQ, transposes) is taken to be fused into its neighbors and costs
nothing. An engine that fuses several of these operators may move fewer activations; in all else none does less.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from r1v_export.errors import GraphError
from r1v_export.exporters.graph_values import dtype_of, input_of, shape_of

LENGTH = "length"
"""Size that says how many cache slots are in use after the step; the capacity where it is not given."""

_LAYER = re.compile(r"^(.*\blayers\.\d+)\b")
_QUANTIZED = {ir.DataType.FLOAT8E4M3FN, ir.DataType.INT8}


@dataclass(frozen=True)
class Cost:
    """What one operator does.

    arithmetic: the type that its operands have on the matrix units.
    """

    module: str
    arithmetic: str
    flops: int
    weight_bytes: int
    activation_bytes: int
    cache_bytes: int

    @property
    def bytes(self) -> int:
        """All bytes read and written: weights, activations and cache."""
        return self.weight_bytes + self.activation_bytes + self.cache_bytes

    @property
    def layer(self) -> str:
        """The transformer layer that it is part of, or the module itself outside of those."""
        match = _LAYER.match(self.module)
        return match[1] if match else self.module


def count(model: ir.Model, sizes: Mapping[str, int]) -> list[Cost]:
    """The costs of a graph's operators, in the graph's order.

    Args:
        sizes: of the graph's symbols (`tiles`, `batch`, `seq`, `capacity`, ...) and, where not all of the cache is in
            use, of `length`.

    Raises:
        GraphError: a shape is not known, or a symbol has no size.
    """
    counter = _Counter(sizes)
    costs = (counter.cost(node) for node in model.graph)
    return [cost for cost in costs if cost is not None]


def by_layer(costs: Iterable[Cost]) -> dict[str, list[Cost]]:
    """Costs by transformer layer, in order."""
    layers: dict[str, list[Cost]] = {}
    for cost in costs:
        layers.setdefault(cost.layer, []).append(cost)
    return layers


class _Counter:
    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes

    def cost(self, node: ir.Node) -> Cost | None:
        counters = {
            "MatMul": self._matmul,
            "Conv": self._conv,
            "Attention": self._attention,
            "TensorScatter": self._scatter,
        }
        return counters[node.op_type](node) if node.op_type in counters else None

    def _matmul(self, node: ir.Node) -> Cost:
        x, weight = input_of(node, 0), input_of(node, 1)
        rows = math.prod(self._shape(x)[:-1])
        features_in, features_out = self._shape(weight)[-2:]
        operand, qweight = _before_dequantizing(x), _before_dequantizing(weight)
        both_quantized = operand.dtype in _QUANTIZED and qweight.dtype in _QUANTIZED
        arithmetic = qweight.dtype if both_quantized else node.outputs[0].dtype or weight.dtype
        return self._made(
            node,
            arithmetic,
            flops=2 * rows * features_in * features_out,
            weight_bytes=self._weight_bytes(weight),
            activation_bytes=self._bytes(operand) + self._bytes(node.outputs[0]),
        )

    def _conv(self, node: ir.Node) -> Cost:
        x, weight, result = input_of(node, 0), input_of(node, 1), node.outputs[0]
        per_output = math.prod(self._shape(weight)[1:])
        return self._made(
            node,
            result.dtype,
            flops=2 * math.prod(self._shape(result)) * per_output,
            weight_bytes=self._weight_bytes(weight),
            activation_bytes=self._bytes(x) + self._bytes(result),
        )

    def _attention(self, node: ir.Node) -> Cost:
        """Attention over a cache (`TensorScatter` made its keys) reads the slots in use, and each query sees those up
        to its own; other attention is not masked."""
        q, k, v, result = (*(input_of(node, index) for index in range(3)), node.outputs[0])
        batch, heads, seq, dim = self._shape(q)
        kv_heads, slots = self._shape(k)[1:3]
        maker = k.producer()
        cached = maker is not None and maker.op_type == "TensorScatter"
        length = min(self.sizes.get(LENGTH, slots), slots) if cached else slots
        pairs = seq * length - (seq * (seq - 1) // 2 if cached else 0)
        read = math.ceil(batch * kv_heads * length * (dim + self._shape(v)[3]) * _width(k))
        return self._made(
            node,
            result.dtype,
            flops=2 * batch * heads * pairs * (dim + self._shape(v)[3]),
            activation_bytes=self._bytes(q) + self._bytes(result) + (0 if cached else read),
            cache_bytes=read if cached else 0,
        )

    def _scatter(self, node: ir.Node) -> Cost:
        """The cache is written in place: only the new slots move."""
        new = input_of(node, 1)
        return self._made(node, new.dtype, flops=0, cache_bytes=self._bytes(new))

    def _made(
        self,
        node: ir.Node,
        arithmetic: ir.DataType | None,
        flops: int,
        weight_bytes: int = 0,
        activation_bytes: int = 0,
        cache_bytes: int = 0,
    ) -> Cost:
        module = (node.name or "").rpartition("/")[0]
        name = arithmetic.name.lower() if arithmetic else "float32"
        name = {"float": "float32"}.get(name, name)
        return Cost(module, name, flops, weight_bytes, activation_bytes, cache_bytes)

    def _weight_bytes(self, weight: ir.Value) -> int:
        """Bytes of a stored weight, with its scales and zero points; 0 for what the graph itself computes."""
        node = weight.producer()
        stored = [weight] if node is None else [value for value in node.inputs if value is not None]
        return sum(self._bytes(value) for value in stored if value.is_initializer())

    def _bytes(self, value: ir.Value) -> int:
        return math.ceil(math.prod(self._shape(value)) * _width(value))

    def _shape(self, value: ir.Value) -> tuple[int, ...]:
        return tuple(self._size(dim, value) for dim in shape_of(value))

    def _size(self, dim: int | ir.SymbolicDim, value: ir.Value) -> int:
        if isinstance(dim, int):
            return dim
        if dim.value is None or dim.value not in self.sizes:
            raise GraphError(
                "A dimension of the graph has no size to count with.",
                where=value.name,
                expected=f"a size for {dim.value}",
                found=", ".join(f"{name}={size}" for name, size in self.sizes.items()),
            )
        return self.sizes[dim.value]


def _before_dequantizing(value: ir.Value) -> ir.Value:
    """The quantized values that a value is dequantized from; otherwise the value itself."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return value
    return input_of(node, 0)


def _width(value: ir.Value) -> float:
    """Bytes per element."""
    return dtype_of(value).bitwidth / 8
