"""Weightless tracing: a graph of the contract becomes an ONNX model without a single weight in memory."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from r1v_export.contract import COMPUTE, OPSET, GraphContract, TensorContract
from r1v_export.errors import GraphError
from r1v_export.exporters.graph import GraphSource
from r1v_export.exporters.operators import onnx_operators
from r1v_export.exporters.passes import clean


def trace(source: GraphSource, contract: GraphContract, compute: torch.dtype) -> ir.Model:
    """The graph of `source` in standard ONNX, cleaned by `passes`.

    The graph, its inputs and outputs have the contract's names; initializers are unmaterialized and have their
    published names.
    """
    with FakeTensorMode(), onnx_operators(), _default_dtype(compute), _quiet(), _registered_once():
        module = source.module().eval().requires_grad_(False)
        arguments, dynamic_shapes = _example_inputs(module, contract, compute)
        exported = torch.export.export(module, arguments, dynamic_shapes=dynamic_shapes, strict=False)
        program = torch.onnx.export(exported, dynamo=True, optimize=False, opset_version=OPSET, verbose=False)
        assert program is not None
        model: ir.Model = program.model
        model.graph.name = contract.name
        _name_boundary(model, contract)
        _name_initializers(model, source.prefix)
        clean(model, source.prefix, dict(source.value_names))
    return model


def _example_inputs(
    module: nn.Module, contract: GraphContract, compute: torch.dtype
) -> tuple[tuple[torch.Tensor, ...], tuple[Any, ...]]:
    """Inputs of the contract's shapes, every symbol another small size, and the symbols for torch.export."""
    symbols = dict.fromkeys(dim for tensor in contract.inputs for dim in tensor.shape if isinstance(dim, str))
    sizes = dict(zip(symbols, itertools.count(3, 2), strict=False))
    # A cache holds at least the tokens of a step.
    sizes |= {symbol: 64 for symbol in sizes if symbol == "capacity"}
    dims = {symbol: torch.export.Dim(symbol) for symbol in symbols}

    def example(tensor: TensorContract) -> torch.Tensor:
        dtype = compute if tensor.dtype == COMPUTE else getattr(torch, tensor.dtype)
        return torch.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in tensor.shape], dtype=dtype)

    inputs = tuple(example(tensor) for tensor in contract.inputs)
    shapes = tuple(
        {axis: dims[dim] for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)} for tensor in contract.inputs
    )
    return inputs, _as_arguments(module, shapes)


def _as_arguments(module: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """torch.export wants the shapes of `*args` as one tuple."""
    code = module.forward.__func__.__code__  # type: ignore[attr-defined]
    takes_varargs = bool(code.co_flags & 0x04)
    named = code.co_argcount - 1
    return (*shapes[:named], shapes[named:]) if takes_varargs else shapes


def _name_boundary(model: ir.Model, contract: GraphContract) -> None:
    """Put the contract's names on inputs and outputs, and its symbols in the place of torch's (s35 -> tiles)."""
    graph = model.graph
    symbols: dict[str, str] = {}
    for values, tensors in ((graph.inputs, contract.inputs), (graph.outputs, contract.outputs)):
        if len(values) != len(tensors):
            raise GraphError(
                f"The traced {contract.name} graph does not have the contract's boundary.",
                expected=[tensor.name for tensor in tensors],
                found=[value.name for value in values],
            )
        for value, tensor in zip(values, tensors, strict=True):
            value.name = tensor.name
            symbols |= {str(dim): str(new) for dim, new in zip(value.shape or (), tensor.shape, strict=True)}
            value.shape = ir.Shape(tensor.shape)
    for node in graph:
        for output in node.outputs:
            if output.shape is not None:
                output.shape = ir.Shape([_renamed(dim, symbols) for dim in output.shape])


def _name_initializers(model: ir.Model, prefix: str) -> None:
    """Published names instead of the module's own, and no trace of torch's fake weights."""
    initializers = model.graph.initializers
    for name, value in list(initializers.items()):
        initializers.pop(name)
        value.name, value.const_value = prefix + name, None
        initializers[value.name] = value


def _renamed(dim: int | ir.SymbolicDim, symbols: dict[str, str]) -> int | str:
    if isinstance(dim, int):
        return dim
    return re.sub(r"[A-Za-z_]\w*", lambda match: symbols.get(match[0], match[0]), str(dim))


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _registered_once() -> Iterator[None]:
    """torch.onnx reads the functions of all its operators anew for every graph, half a second each time, and changes
    nothing of what it has read: let it read them once per process."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # a PyTorch that has them elsewhere
        yield
        return
    own = ONNXRegistry.__dict__["from_torchlib"]
    make = ONNXRegistry.from_torchlib
    once = staticmethod(lambda *version, **named: _registry(make, *version, **named))
    ONNXRegistry.from_torchlib = once  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = own  # type: ignore[method-assign]


@cache
def _registry(make: Callable[..., Any], *version: int, **named: int) -> Any:
    return make(*version, **named)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx logs that torchvision is missing, onnx_ir that weights are, torch warns of its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
