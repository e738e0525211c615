"""Runs passes one after the other, and logs what each changed."""

from __future__ import annotations

import logging
from collections import Counter

import onnx_ir as ir

from r1v_export.count import Count
from r1v_export.log_event import log_event

_LOG = logging.getLogger(__name__)


def run_passes(model: ir.Model, *passes: ir.passes.InPlacePass) -> None:
    """Run every pass on a model, in place.

    Raises:
        PassError: a pass refuses the model; its cause is the pass's own error.
    """
    ir.passes.Sequential(*map(_Logged, passes))(model)


class _Logged(ir.passes.InPlacePass):
    """A pass that logs the operators and initializers that another pass adds and removes."""

    def __init__(self, inner: ir.passes.InPlacePass) -> None:
        super().__init__()
        self._inner = inner

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not _LOG.isEnabledFor(logging.INFO):
            return self._inner(model)
        before = _operators(model), len(model.graph.initializers)
        result = self._inner(model)
        after = _operators(model), len(model.graph.initializers)
        changed = result.modified or before != after
        log_event(
            _LOG,
            logging.INFO if changed else logging.DEBUG,
            "%(graph)s, %(transform)s: %(changes)s",
            graph=model.graph.name or "graph",
            transform=type(self._inner).__name__,
            changes=_difference(before, after) if changed else "nothing to change",
        )
        return result


def _operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def _difference(before: tuple[Counter[str], int], after: tuple[Counter[str], int]) -> str:
    (nodes, initializers), (new_nodes, new_initializers) = before, after
    added = [f"+{count} {name}" for name, count in sorted((new_nodes - nodes).items())]
    removed = [f"-{count} {name}" for name, count in sorted((nodes - new_nodes).items())]
    changes = ", ".join((*added, *removed)) or "rewritten in place"
    after_nodes, after_weights = Count(new_nodes.total(), "node"), Count(new_initializers, "initializer")
    return f"{changes}; {nodes.total()} -> {after_nodes}, {initializers} -> {after_weights}"
