"""A lowered graph, read by TensorRT's ONNX parser into a strongly typed network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from r1v_export.errors import GraphError
from r1v_export.targets.tensorrt.library import Library

_LAYERS, _LAYER, _PARSING = "Layers:", "Name: ", "Parsing node: "
_NO_DRIVER = "[checkMacros.cpp::catchCudaError"
"""Begins what the library logs on a machine without a GPU whenever it has failed for another reason."""


@dataclass
class Messages:
    """What the library says while it works, kept for diagnoses."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    """One line per layer of the finished engine, as its verbose log describes them."""
    on_module: Callable[[str], None] = lambda module: None
    """Called with the module of the reference from which the currently parsed node comes."""

    def add(self, severity: str, message: str) -> None:
        """Record a message of the library, or report progress from it."""
        if _NO_DRIVER in message:
            return
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
        elif severity == "WARNING":
            self.warnings.append(message)
        elif message.startswith(_PARSING):
            node = message.removeprefix(_PARSING).rpartition(" [")[0]
            self.on_module(node.rpartition("/")[0] or node)
        elif message.startswith(_LAYERS):
            self.layers = [line for line in message.splitlines() if line.startswith(_LAYER)]


@dataclass
class Network:
    """A parsed graph and the builder that it belongs to."""

    library: Library
    name: str
    model: ir.Model
    builder: Any
    definition: Any
    messages: Messages
    parser: Any
    """Held because the network refers to weights that the parser has mapped."""

    @property
    def inputs(self) -> list[Any]:
        """The network's input tensors."""
        return [self.definition.get_input(index) for index in range(self.definition.num_inputs)]

    @property
    def outputs(self) -> list[Any]:
        """The network's output tensors."""
        return [self.definition.get_output(index) for index in range(self.definition.num_outputs)]


def parse(
    library: Library,
    model: ir.Model,
    weights_root: Path,
    name: str,
    on_module: Callable[[str], None] = lambda module: None,
) -> Network:
    """Read a graph.

    Args:
        model: its weights' locations are relative to `weights_root`.
        name: of the graph, for messages.
        on_module: called with the module of the reference from which the currently parsed node comes.

    Raises:
        GraphError: the parser refuses an operator, which is named with the module that it comes from.
    """
    messages = Messages(on_module=on_module)
    builder = library.module.Builder(library.logger(messages.add))
    definition = library.new_network(builder)
    parser = library.module.OnnxParser(definition, builder.logger)
    content = ir.to_proto(model).SerializeToString()
    parsed = parser.parse(content, str(weights_root / f"{name}.onnx"))
    if not parsed or parser.num_errors:
        raise _refused(library, name, [parser.get_error(index) for index in range(parser.num_errors)], messages)
    return Network(library, name, model, builder, definition, messages, parser)


def _refused(library: Library, graph: str, errors: list[Any], messages: Messages) -> GraphError:
    where = f"{library.target} {library.version}: {graph}"
    if not errors:
        found = messages.errors[-1] if messages.errors else "no reason given"
        return GraphError("TensorRT's parser refuses a graph.", where=where, found=found)
    first = errors[0]
    return GraphError(
        f"TensorRT's parser refuses {first.node_operator() or 'a graph'}.",
        where=f"{where}: node {first.node_name() or '?'}",
        expected="operators that it knows, in the form that it takes",
        found=" ".join(first.desc().split()),
        fix=module_hint(first.node_name()),
    )


def module_hint(node: str) -> str:
    """What to change for the sake of a node, whose name begins with the reference's module that it comes from."""
    module = node.rpartition("/")[0]
    if not module:
        return "see the lowering passes in targets/tensorrt/lower"
    return f"the node comes from the module {module} of r1v_export/reference: change that, or lower it in a pass"


def mentioned_node(model: ir.Model, message: str) -> str:
    """The node of the graph that a message names; of several, the longest name; empty if there is none."""
    names = [node.name for node in model.graph if node.name and node.name in message]
    return max(names, key=len, default="")
