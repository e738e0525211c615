"""Which formats the runtimes read that checkpoints are written for: one table for warnings, documentation and tests.

Each line was seen on the version that is named (benchmarks/vllm_oracle.py; results in benchmarks/results).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

VLLM = "vLLM 0.32.0"


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
            "its ModelOpt reader has no such algorithm, and under MIXED_PRECISION takes such linears for unquantized",
            fix,
        )
        for algorithm, fix in (
            ("W4A16_AWQ", "Build --target compressed-tensors: vLLM reads the same quantized values from it."),
            ("W4A8_AWQ", "Build fp8, or int4 with --target compressed-tensors, for vLLM."),
        )
    ),
)
"""What is not in this table is read by every runtime that knows the layout and a model of this family."""


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
