"""Which formats the runtimes read that checkpoints are written for: one table for warnings, documentation and tests.

Each line was seen on the version that is named (benchmarks/vllm_oracle.py; results in benchmarks/results, as a table in
docs/readers.md). A test holds this table against those results.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.groups import linear_groups

VLLM = "vLLM 0.32.0"

UNEQUAL = "different schemes of q, k and v, or of gate and up"
"""What `formats_in` calls linears that runtimes fuse and that are not quantized alike."""

GROUP_ORDER = "actorder: group"
"""What the target compressed-tensors calls INT4 weights whose groups follow the activations (weight_g_idx)."""

NATIVE_TOWER = "a vision tower or projector quantized in the internvl layout"
"""What `formats_in` calls quantized linears of transformers' own layout that are outside the language model."""


@dataclass(frozen=True)
class Refusal:
    """A format that a version of a runtime does not compute as it is written."""

    reader: str
    layout: str
    """The target that writes it."""
    format: str
    reason: str
    """What the reader does, in its own words where it has some."""
    fix: str
    """A sentence."""


REFUSALS = (
    *(
        Refusal(
            VLLM,
            "hf-unified",
            algorithm,
            "its ModelOpt reader has no such algorithm, and under MIXED_PRECISION no parameters for their scales",
            fix,
        )
        for algorithm, fix in (
            ("W4A16_AWQ", "Build --target compressed-tensors: vLLM reads the same quantized values from it."),
            ("W4A8_AWQ", "Build fp8, or int4 with --target compressed-tensors, for vLLM."),
        )
    ),
    Refusal(
        VLLM,
        "compressed-tensors",
        GROUP_ORDER,
        "group/dynamic activation ordering is no longer supported there",
        "Give GPTQ act_order: static for vLLM.",
    ),
    *(
        Refusal(VLLM, layout, UNEQUAL, "it computes each of the two sets as one linear", "Give each set one scheme.")
        for layout in ("hf-unified", "compressed-tensors")
    ),
    *(
        Refusal(
            VLLM,
            layout,
            NATIVE_TOWER,
            "its class for that layout has attention and projector in 16 bits only",
            "Quantize the language model alone: a recipe with the rule modules: language_model.*.",
        )
        for layout in ("hf-unified", "compressed-tensors")
    ),
)
"""What is not in this table is read by every runtime that knows the layout and a model of this family."""


def formats_in(formats: Mapping[str, str], schemes: Mapping[str, object], spec: ModelSpec) -> set[str]:
    """The formats of a model's linears, by the names of the table.

    Args:
        formats: linear -> what the layout calls its format, for the quantized ones.
        schemes: linear -> how it is quantized, likewise: anything that is equal where linears are quantized alike.
        spec: the model.
    """
    groups = [[schemes.get(linear) for linear in group.linears] for group in linear_groups(spec)]
    unequal = any(scheme != group[0] for group in groups for scheme in group)
    tower = spec.layout == "internvl" and any(not linear.startswith("language_model.") for linear in formats)
    return {*formats.values(), *([UNEQUAL] if unequal else []), *([NATIVE_TOWER] if tower else [])}


def warnings_for(layout: str, formats: Collection[str]) -> tuple[str, ...]:
    """A sentence for each runtime that does not read one of the formats.

    Args:
        layout: the target that wrote them.
        formats: names of the table.
    """
    return tuple(
        f"{refusal.reader} does not read {refusal.format}: {refusal.reason}. {refusal.fix}"
        for refusal in REFUSALS
        if refusal.layout == layout and refusal.format in formats
    )
