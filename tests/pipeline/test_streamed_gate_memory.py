"""The plan of a streamed gate against what was measured, and against what one takes here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.model_spec import ModelSpec
from r1v_export.pipeline.build import build
from r1v_export.pipeline.held_weights import HeldWeights
from r1v_export.pipeline.streamed_gate_memory import PROCESS_BYTES, StreamedMemory
from r1v_export.quantization.recipe import Recipe, resolve
from tests.documents import PROJECT

RESULTS = PROJECT / "benchmarks/results"
ROWS: dict[str, Any] = json.loads(max(RESULTS.glob("*-gate-memory.json")).read_text(encoding="utf-8"))["rows"]
"""What benchmarks/gate_memory.py measured last."""
NOTHING_HELD = {"vision_features/arithmetic", "vision_features/quantization", "vision_features/engine"}
"""Parts without weights."""
LARGE_HEAD: dict[str, Any] = {
    "preset": "internvl3-1b",
    "vision_layers": 1,
    "language_layers": 1,
    "weights": "sparse",
    "overrides": {
        "vision_config.hidden_size": 256,
        "vision_config.num_attention_heads": 4,
        "vision_config.intermediate_size": 512,
        "llm_config.hidden_size": 512,
        "llm_config.num_attention_heads": 8,
        "llm_config.intermediate_size": 1024,
    },
}
"""A model that is all vocabulary: 0.3 GB of a head."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT)}
STREAMED = sorted(name for name, row in ROWS.items() if row["gate"] == "streamed")


def planned(row: dict[str, Any]) -> StreamedMemory:
    """What is planned today for a recorded gate."""
    spec = ModelSpec.model_validate(row["spec"])
    schemes = resolve(Recipe.model_validate(row["recipe"]), spec) if row["recipe"] else {}
    parity = ParityConfig(streamed_questions=row["questions"], streamed_reply_tokens=row["reply_tokens"])
    config = BuildConfig.model_validate(row.get("config", {"precision": row["precision"], "targets": [row["target"]]}))
    return StreamedMemory(spec, schemes, parity, HeldWeights.of(config, row["target"], spec))


@pytest.mark.parametrize("name", STREAMED)
def test_the_plan_is_within_15_percent_of_the_measured_peak(name: str) -> None:
    assert 0.85 <= planned(ROWS[name]).peak / ROWS[name]["peak"] <= 1.15


@pytest.mark.parametrize("name", STREAMED)
def test_no_part_is_further_off_than_15_percent_of_the_peak(name: str) -> None:
    """Of a deeper or wider model another part may be the one that decides."""
    row = ROWS[name]
    parts = planned(row).parts
    assert row["parts"].keys() - parts.keys() == {"process", *NOTHING_HELD & row["parts"].keys()}
    shares = {part: (bytes_ - row["parts"][part]) / row["peak"] for part, bytes_ in parts.items()}
    assert [f"{part} {share:+.2f}" for part, share in shares.items() if abs(share) > 0.15] == []


@pytest.mark.slow(30)
def test_a_gate_takes_here_what_is_planned(tmp_path: Path) -> None:
    """Of the process itself, another machine's libraries take more or less: without it."""
    model, out = synthesize(tmp_path / "model", **LARGE_HEAD), tmp_path / "bundle"
    parity = ParityConfig(enabled=False)
    config = BuildConfig(
        model=str(model), precision="int4", recipe="int4-rtn", targets={"hf-unified": {}}, parity=parity
    )
    build(config, out)
    script, results = PROJECT / "benchmarks/gate_memory.py", tmp_path / "results"
    subprocess.run([sys.executable, script, out, model, "--results", results], check=True, env=ENVIRONMENT)
    (row,) = json.loads(next(results.iterdir()).read_text(encoding="utf-8"))["rows"].values()
    of_model = planned(row).peak - PROCESS_BYTES
    assert of_model > 200e6
    assert 0.85 <= of_model / (row["peak"] - row["parts"]["process"]) <= 1.15
