"""From numbers to words: what usually makes one boundary, and none before it, go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np

from r1v_export.parity.metrics import LogitStatistics, Statistics, TensorStatistics
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.quantization_cost import cost_causes, next_steps
from r1v_export.parity.tolerances import Boundary
from r1v_export.processing.tokenizer import Tokenizer

CAUSES: Mapping[Boundary, tuple[str, ...]] = {
    "pixels": (
        "the two sides have other tiling settings (max_dynamic_patch, use_thumbnail, force_image_size)",
        "another version of Pillow resizes differently: 13 and later do",
    ),
    "prompt": (
        "the bundle's tokenizer files or prompt template are not the checkpoint's",
        "the number of tiles differs, and with it the number of image tokens",
    ),
    "vision_block": ("a weight of this block is wrong (attn, mlp, ls1, ls2, norm1, norm2)",),
    "vision": (
        "the pixel shuffle (ps_version) or the removal of the class token, if all ViT blocks agree",
        "a weight of the vision tower is wrong; to compare block by block: check --blocks",
    ),
    "projector": (
        "a weight of mlp1 is wrong",
        "the epsilon of its LayerNorm (1e-5), or GELU by tanh instead of erf",
    ),
    "embeds": (
        "rows of language_model.model.embed_tokens are wrong",
        "the image embeddings are put in other places or in another order",
    ),
    "decoder_layer": (
        "a weight of this layer is wrong (self_attn, mlp, norms)",
        "rope_theta, rms_norm_eps, a missing q/k/v bias, or the causal mask, if it is the first layer",
    ),
    "prefill": (
        "a weight of a decoder layer or of the final norm is wrong",
        "rope_theta, rms_norm_eps, a missing q/k/v bias, or the causal mask",
    ),
    "decode": (
        "the logits after the prompt are within their limits: suspect the key-value cache (cache_write_index, "
        "cache_length) and position_ids where tokens come one by one",
        "or a weight that moves the logits after the prompt by less than their limits, and later ones by more",
    ),
    "end_to_end": (
        "every stage is within its limits on the reference's inputs: small errors add up from stage to stage, or what "
        "is handed from one to the next is cast to a type it does not fit",
    ),
    "tokens": (
        "every stage is within its limits on the reference's inputs: small errors added up until a near tie flipped",
    ),
}
"""Boundary -> causes, the likeliest first. All earlier boundaries are then within their limits."""

LAYERS: Mapping[str, str] = {"vision_block": "ViT blocks", "decoder_layer": "decoder layers"}
"""Boundaries of which there is one for each layer, and what people call those."""

_FEW_TOKENS = 0.02
"""Share of the vocabulary up to which wrong logits count as few: then it is rows of lm_head and not what is before."""

_RISE, _NO_ERROR = 10.0, 1e-7
"""Factor by which a layer's relative error stands out from the one before, and what counts as none before."""

_SMALL_KL = 1e-3
"""Mean KL divergence in nats up to which two next-token distributions are much the same."""


def kind_of(boundary: str) -> Boundary:
    """The name under which tolerances and causes are kept: `vision_block.7` is a `vision_block`."""
    return cast(Boundary, boundary.partition(".")[0])


@dataclass(frozen=True)
class Diagnosis:
    """Why a gate failed."""

    causes: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()
    """What to try, if it is a matter of options; empty where something is wrong, which the causes say."""


def diagnose(
    first_bad: str | None,
    found_by_name: Mapping[str, Statistics],
    tokenizer: Tokenizer,
    options: CheckOptions,
    *,
    given_reply: bool = False,
) -> Diagnosis:
    """Why the first bad boundary is out of tolerance; nothing if none is.

    Args:
        found_by_name: the statistics of all boundaries.
        given_reply: the decoded tokens are no answer of the model, as in a streamed gate.
    """
    if first_bad is None:
        return Diagnosis()
    if options.gate == "quantization" and _may_be_lost(first_bad, found_by_name[first_bad], options):
        kind = kind_of(first_bad)
        causes = cost_causes(kind, found_by_name, options)
        return Diagnosis(causes, next_steps(kind, found_by_name, options, given_reply))
    return Diagnosis(likely_causes(first_bad, found_by_name, tokenizer))


def _may_be_lost(boundary: str, statistics: Statistics, options: CheckOptions) -> bool:
    """Whether rounding weights or inputs can be why a boundary is out of tolerance."""
    if problem(statistics) or kind_of(boundary) in ("pixels", "prompt"):
        return False
    return kind_of(boundary) != "embeds" or options.own_weights is not None  # no recipe quantizes the embeddings


def likely_causes(boundary: str, found_by_name: Mapping[str, Statistics], tokenizer: Tokenizer) -> tuple[str, ...]:
    """What may be wrong, in words: what the statistics speak for comes first.

    Args:
        boundary: the first bad one.
        found_by_name: the statistics of all boundaries.
    """
    kind, statistics = kind_of(boundary), found_by_name[boundary]
    found = []
    if tensor := _tensor(statistics):
        found += _from_values(tensor)
        if kind == "embeds" and tensor.worst and tensor.worst.sample.startswith("("):
            found.append(f"wrong row of embed_tokens: {_token(tensor.worst.index[0], tokenizer)}")
    if isinstance(statistics, LogitStatistics):
        found += _from_logits(statistics, tokenizer) if kind == "prefill" else []
        found += _from_choices(statistics)
    if kind in ("prefill", "decode"):
        found += _from_layers(found_by_name)
    if boundary == "vision_block.0":
        found.append("the patch embedding, class embedding or position embedding is wrong")
    return (*found, *CAUSES[kind])


def problem(statistics: Statistics) -> str | None:
    """What no number says: other shapes, NaN, infinities."""
    tensor = _tensor(statistics)
    if tensor is None:
        return None
    if tensor.shape_mismatch:
        return f"shapes differ: {tensor.shape_mismatch}"
    if not tensor.nonfinite:
        return None
    counts = {"reference": tensor.nonfinite_reference, "candidate": tensor.nonfinite_candidate}
    nonfinite = " and ".join(
        f"{count} NaN or infinite values in the {endpoint}" for endpoint, count in counts.items() if count
    )
    where = tensor.worst
    return f"{nonfinite}, the first at {list(where.index)} of sample {where.sample}" if where else nonfinite


def _tensor(statistics: Statistics) -> TensorStatistics | None:
    if isinstance(statistics, LogitStatistics):
        return statistics.tensor
    return statistics if isinstance(statistics, TensorStatistics) else None


def _from_values(tensor: TensorStatistics) -> list[str]:
    if tensor.nonfinite_reference:
        return ["the reference itself is not finite: a weight of the checkpoint is NaN or infinite"]
    if tensor.nonfinite_candidate:
        return ["a value beyond the range of the type it is computed in (float16 ends at 65504), or a NaN in a weight"]
    return []


def _from_logits(statistics: LogitStatistics, tokenizer: Tokenizer) -> list[str]:
    """Whether the error sits in the logits of few tokens only."""
    errors_V = statistics.error_by_token
    if errors_V is None or not errors_V.any():
        return []
    wrong = np.flatnonzero(errors_V > 0.1 * errors_V.max())
    if len(wrong) > max(1, _FEW_TOKENS * len(errors_V)):
        return []
    named = ", ".join(_token(int(token), tokenizer) for token in wrong[:3]) + (", ..." if len(wrong) > 3 else "")
    verb = "is" if len(wrong) == 1 else "are"
    return [f"only {len(wrong)} of {len(errors_V)} logits {verb} wrong, so rows of lm_head are: {named}"]


def _from_layers(found: Mapping[str, Statistics]) -> list[str]:
    """The decoder layer behind which the error rises most, where layers were compared and one stands out."""
    layers = [name for name in found if kind_of(name) == "decoder_layer"]
    errors = {name: tensor.relative_error for name in layers if (tensor := _tensor(found[name]))}
    rises = {name: errors[name] / max(errors[before], _NO_ERROR) for before, name in pairwise(errors)}
    largest = max(rises, key=rises.__getitem__, default="")
    if rises.get(largest, 0.0) < _RISE:
        return []
    return [f"the error rises {rises[largest]:.3g} times in {largest}, to {errors[largest]:.3g}"]


def _from_choices(statistics: LogitStatistics) -> list[str]:
    """Whether choices changed although probabilities hardly did."""
    if statistics.top1_agreeing == statistics.rows or statistics.sum_kl > _SMALL_KL * statistics.rows:
        return []
    return ["the probabilities hardly differ: near ties between the best two tokens flipped"]


def _token(token_id: int, tokenizer: Tokenizer) -> str:
    return f"token {token_id} ({tokenizer.decode([token_id])!r})"
