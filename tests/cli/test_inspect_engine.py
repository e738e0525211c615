"""What `inspect BUNDLE --target T` and `--roofline GPU` print, on terminals of any width."""

from __future__ import annotations

import pytest

from r1v_export.cli.inspect_engine import _part_text, _workload_text
from r1v_export.roofline.counts import Cost
from r1v_export.targets.interface import EngineDescription

COSTS = [
    Cost(module, "bfloat16", 96_300_000, 840_000, 420_000, 420_000)
    for module in (
        "vision_model.embeddings.patch_embedding",
        *(f"vision_model.encoder.layers.{i}.mlp.fc1" for i in range(45)),
    )
]


@pytest.mark.parametrize("columns", [60, 80])
def test_layers_are_printed_within_the_terminal_and_in_one_line_each_where_they_fit(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = _workload_text("vision, 5 tiles", COSTS, "H100").splitlines()
    assert max(map(len, lines)) <= columns
    for layer in ("vision_model.embeddings.patch_embedding", "vision_model.encoder.layers.0 and 44 like it"):
        found = [line for line in lines if line.startswith(layer)]
        assert [line.endswith("memory") for line in found] == [columns == 80]


def test_a_part_of_an_engine_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    kernels = "234 kgen, 5 correlation, 24 gemm, 66 runtime_fusion, 4 shape_call; 421 nodes fused away"
    layers = [(f"kind{i}", f"vision_model.encoder.layers.{i}.attn/Slice_3 and 3 more") for i in range(14)]
    text = _part_text("vision", EngineDescription({}, [("kernels", kernels), ("plan", "23.6 MB")], layers))
    assert max(map(len, text.splitlines())) <= 60
    assert "... 2 more with --format json" in text
    assert "layers.11" in text
    assert "layers.12" not in text
