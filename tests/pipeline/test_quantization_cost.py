"""What quantizing a linear of true width is estimated to take, against what it was measured to take."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from r1v_export.config import Matmul
from r1v_export.pipeline.quantization_cost import quantizing_s
from r1v_export.pipeline.rates import Rates
from r1v_export.quantization.groups import LinearGroup, SmoothLayer
from r1v_export.quantization.recipe import Scheme
from tests.documents import PROJECT

RESULTS = PROJECT / "benchmarks/results"
MEASURED: dict[str, Any] = json.loads((RESULTS / "2026-11-28-awq-gptq-throughput.json").read_text(encoding="utf-8"))
"""One thread, in CPU seconds, of AMD EPYC with products in bfloat16."""
PLANNED = json.loads((RESULTS / "2026-11-28-plan-estimates.json").read_text(encoding="utf-8"))
RATES = Rates(**PLANNED["cases"]["slice-int4-gptq"]["rates"])
"""Of one core of the same machine, on the same day."""


@pytest.mark.parametrize("algorithm", ["awq", "gptq"])
@pytest.mark.parametrize("matmul", get_args(Matmul))
def test_what_products_are_rounded_to_counts(algorithm: str, matmul: Matmul) -> None:
    """GPTQ in bfloat16 was planned with 1.54 times what it takes, AWQ's clipping as in float32."""
    ((name, features),) = MEASURED["results"]["o_proj"]["linears"]
    weights = {"type": "int4", "granularity": "group", "group_size": 128, "algorithm": algorithm}
    schemes = {name: Scheme.model_validate({"weights": weights})}
    group = LinearGroup(name, (name,), features, "block", SmoothLayer(("norm.weight",)))
    estimated = quantizing_s(group, schemes, {name: (features, features)}, RATES, matmul)
    row = MEASURED["results"]["o_proj"][f"int4 {algorithm}" + (" bfloat16" if matmul == "bfloat16" else "")]
    assert estimated == pytest.approx(row["cpu_seconds"]["median"], rel=0.33)
