"""Graphs as text, for people and diffs: `graphs/` holds what we emit, and tests replay it.

One line per node: results with their shapes, operator, inputs, attributes. Layers that repeat are printed once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import onnx_ir as ir

from r1v_export.exporters.passes.module_names import CONSTANT

_LAYER = re.compile(r"\b((?:layers|vision_block|decoder_layer|past_key_values|present)\.)(\d+)\b")


def dump(model: ir.Model) -> str:
    """The graph as text, the same for the same graph to the byte."""
    graph = model.graph
    operators = sorted({node.op_type for node in graph})
    lines = [
        f"opset {model.opset_imports['']}",
        f"operators {' '.join(operators)}",
    ]
    weights = [value for value in graph.initializers.values() if not _is_constant(value)]
    for kind, values in (("input", graph.inputs), ("output", graph.outputs), ("weight", weights)):
        lines += ["", *_fold_layers([(f"{kind} {_value(value)} {_type(value)}", value.name or "") for value in values])]
    lines += ["", *_fold_layers([(_node(node), node.name or "") for node in graph])]
    return "\n".join(lines) + "\n"


def _is_constant(value: ir.Value) -> bool:
    return (value.name or "").startswith(CONSTANT)


def _node(node: ir.Node) -> str:
    results = ", ".join(f"{_value(value)} {_type(value)}" for value in node.outputs)
    inputs = ", ".join("-" if value is None else _value(value) for value in node.inputs)
    attributes = ", ".join(f"{name}={attr.value}" for name, attr in sorted(node.attributes.items()))
    return f"{results} = {node.op_type}({inputs})" + (f" {{{attributes}}}" if attributes else "")


def _value(value: ir.Value) -> str:
    return (value.name or "").removeprefix(CONSTANT)


def _type(value: ir.Value) -> str:
    dtype = value.dtype.name.lower() if value.dtype else "?"
    shape = ", ".join(str(dim) for dim in value.shape) if value.shape is not None else "?"
    return f"{dtype}[{shape}]"


def _fold_layers(lines: list[tuple[str, str]]) -> Iterator[str]:
    """Print the runs of lines of equal layers once: layer i stands for all that differ in their number only.

    lines: (text, name) pairs; the name contains the layer.
    """
    runs = [(layer, [text for text, _ in run]) for layer, run in itertools.groupby(lines, key=lambda p: _layer(p[1]))]
    for _, group in itertools.groupby(runs, key=lambda run: _template(*run)):
        alike = list(group)
        first, last = alike[0], alike[-1]
        if first == last:
            yield from first[1]
        else:
            yield f"-- layers {first[0]} ... {last[0]}: alike but for i, the layer's number"
            yield from _template(*last)
            yield f"-- end of layers {first[0]} ... {last[0]}"


def _layer(name: str) -> int | None:
    match = _LAYER.search(name)
    return int(match[2]) if match else None


def _template(layer: int | None, texts: list[str]) -> tuple[str, ...]:
    """The texts of one layer with its number written as i (and its neighbor's as i-1)."""
    if layer is None:
        return tuple(texts)

    def letter(match: re.Match[str]) -> str:
        offset = int(match[2]) - layer
        return match[1] + ("i" if offset == 0 else f"i{offset:+d}")

    return tuple(_LAYER.sub(letter, text) for text in texts)
