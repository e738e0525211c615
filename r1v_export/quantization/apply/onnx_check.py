"""Compare every scale of a quantized graph with its calibration, bit for bit.

The parity gate can miss a wrong scale: static 8-bit inputs amplify rounding, so their tolerances on logits are wide,
and one linear's shuffled scales stay within them. Comparing the scales themselves names the linear.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from r1v_export.errors import ParityError
from r1v_export.exporters.passes.transposed_weights import TRANSPOSED
from r1v_export.exporters.stored_tensors import read_tensor
from r1v_export.quantization.apply.onnx import INPUT_SCALE, SCALE
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.groups import linear_groups


def require_calibrated_scales(graphs: Path, artifact: Artifact) -> None:
    """Compare the scales in a folder's graphs with the calibration's.

    Raises:
        ParityError: one differs; the error names its linear or cache, and how far it is off.
    """
    initializers: dict[str, tuple[Path, ir.TensorProtocol | None]] = {}
    for path in sorted(graphs.glob("*.onnx")):
        found = ir.load(path).graph.initializers
        initializers |= {name: (path, value.const_value) for name, value in found.items()}
    for tensor, owner, expected in _scales(artifact, initializers):
        path, stored = initializers[tensor]
        assert stored is not None
        scale = read_tensor(stored)
        if scale.shape != expected.shape or not np.array_equal(scale, expected):
            raise ParityError(
                f"A scale in the graph is not the calibration's: {owner}.",
                where=f"{path}: {tensor}",
                expected=f"scales of shape {expected.shape} as calibrated",
                found=_difference(scale, expected),
                fix="the bundle was changed after it was built, or one of the two is damaged: build again with --force",
            )


def _scales(artifact: Artifact, wanted: Container[str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Name in the graph, whose it is, and value of every scale that is in a graph (of some targets none is: they are
    built from the calibration itself), [groups, out] where a weight has several."""
    group_of = {linear: group.name for group in linear_groups(artifact.spec) for linear in group.linears}
    for name in artifact.schemes:
        scale_name = f"{name}.weight{TRANSPOSED}{SCALE}"
        if scale_name not in wanted:
            continue
        weight, inputs = artifact.scales(name)
        yield scale_name, name, weight.t().numpy()
        if inputs is not None and f"{group_of[name]}{INPUT_SCALE}" in wanted:
            yield f"{group_of[name]}{INPUT_SCALE}", name, inputs.numpy()
    for name, scales in artifact.cache_scales.items():
        for what, scale in scales.items():
            if f"{name}.{what}{SCALE}" in wanted:
                yield f"{name}.{what}{SCALE}", f"{name}, cached {what}s", np.array(scale, dtype=np.float32)


def _difference(scale: np.ndarray, expected: np.ndarray) -> str:
    if scale.shape != expected.shape:
        return f"shape {scale.shape}"
    wrong = scale != expected
    ratio = scale[wrong] / expected[wrong]
    return f"{int(wrong.sum())} of {wrong.size} differ, by factors of {ratio.min():.3g} to {ratio.max():.3g}"
