"""How many bytes a model's weights take, before any of them is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from r1v_export import contract
from r1v_export.checkpoint.names import EMBED_TOKENS, expected_tensors
from r1v_export.config import Compute
from r1v_export.model_spec import ModelSpec

if TYPE_CHECKING:
    from r1v_export.quantization.recipe import Scheme

BYTES_OF: Mapping[Compute, int] = {"float32": 4, "float16": 2, "bfloat16": 2}

GRAPH_PREFIXES = (
    ("vision_model.", contract.VISION),
    ("mlp1.", contract.PROJECTOR),
    ("language_model.model.embed_tokens.", contract.EMBED),
    ("language_model.", contract.DECODER),
)
QWEIGHT_BYTES = {"fp8": 1.0, "int8": 1.0, "int4": 0.5, "uint4": 0.5}
_SCALE_BYTES = 2


def graph_tensors(spec: ModelSpec) -> dict[str, dict[str, int]]:
    """Graph -> its checkpoint tensors -> number of parameters; a tied embedding is in both graphs that hold it."""
    graphs: dict[str, dict[str, int]] = {graph: {} for _, graph in GRAPH_PREFIXES}
    for name, shape in expected_tensors(spec).items():
        graph = next(graph for prefix, graph in GRAPH_PREFIXES if name.startswith(prefix))
        graphs[graph][name] = math.prod(shape)
    if spec.language.tie_word_embeddings:
        graphs[contract.DECODER] |= graphs[contract.EMBED]
    return graphs


def parameter_count(spec: ModelSpec) -> int:
    """Number of parameters of the whole model, each counted once."""
    return sum(math.prod(shape) for shape in expected_tensors(spec).values())


def weight_bytes(spec: ModelSpec, schemes: Mapping[str, Scheme], compute: Compute) -> dict[str, int]:
    """Bytes of the weights of each graph, to a percent: scales count where groups of inputs have their own.

    Args:
        schemes: of every quantized linear.
        compute: what all other weights are stored in.
    """
    return {
        graph: round(sum(tensor_bytes(name, count, schemes, compute) for name, count in tensors.items()))
        for graph, tensors in graph_tensors(spec).items()
    }


def tensor_bytes(name: str, parameters: int, schemes: Mapping[str, Scheme], compute: Compute) -> float:
    """Bytes of one checkpoint tensor, or of a share of it, as `weight_bytes` counts them.

    Args:
        parameters: of the share.
    """
    return parameters * _bytes_per_parameter(schemes.get(name.removesuffix(".weight")), compute)


def checkpoint_bytes(spec: ModelSpec, schemes: Mapping[str, Scheme], compute: Compute) -> int:
    """Bytes of the whole model's weights, each stored once."""
    twice = graph_tensors(spec)[contract.EMBED][EMBED_TOKENS] if spec.language.tie_word_embeddings else 0
    return sum(weight_bytes(spec, schemes, compute).values()) - twice * BYTES_OF[compute]


def calibration_bytes(spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
    """Bytes of a calibration, to a percent: scales and quantized values that do not follow from the checkpoint.

    Args:
        schemes: of every quantized linear.
    """
    from r1v_export.quantization.groups import linear_shapes  # imports torch, which the runtime has not
    from r1v_export.quantization.rounded_weights import stored_linears, uncalibrated_linears
    from r1v_export.quantization.smoothing import smoothed_groups

    shapes, stored = linear_shapes(spec), stored_linears(schemes)
    total = 4.0 * sum(group.in_features for group in smoothed_groups(spec, schemes))
    alone = uncalibrated_linears(spec, schemes)
    for name, scheme in ((name, scheme) for name, scheme in schemes.items() if name not in alone):
        (out_features, in_features), weights = shapes[name], scheme.weights
        groups = in_features // weights.group_size if weights.group_size else 1
        total += out_features * groups * (5 if weights.type == "uint4" else 4)
        total += out_features * in_features * QWEIGHT_BYTES[weights.type] if name in stored else 0
    return round(total)


def _bytes_per_parameter(scheme: Scheme | None, compute: Compute) -> float:
    if scheme is None:
        return BYTES_OF[compute]
    group = scheme.weights.group_size
    return QWEIGHT_BYTES[scheme.weights.type] + (_SCALE_BYTES / group if group else 0)
