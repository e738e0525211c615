"""The share of a roofline: fixed timings on a device that is only named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from r1v_export.bundle import Bundle
from r1v_export.pipeline import roofline_report as module
from r1v_export.pipeline.roofline_report import DECODE, PREFILL, VISION_PROJECTOR, attained
from r1v_export.roofline.devices import DeviceSpec, device
from r1v_export.roofline.workloads import Workload

MEASURED = {
    "batch": 1,
    "tiles": 2,
    "prompt_tokens": 40,
    "new_tokens": 5,
    "stages_ms": {"vision_ms": 6.0, "projector_ms": 2.0, "embed_ms": 1.0, "prefill_ms": 4.0, "decode_ms": 10.0},
}
SLOW_MEMORY = DeviceSpec("slow memory", 90, {"float16": 1e9}, 1, 1e-3, "made up")
"""1e6 bytes per second, and arithmetic for nothing."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Let the machine have the GPU of this name."""

    def pretend(name: str) -> None:
        monkeypatch.setattr(module, "device_name", lambda device: f"{device}: {name}")

    return pretend


def test_a_known_gpu_is_found_by_its_drivers_name_and_every_stage_compared_with_its_roofline(
    tiny_built: Path, gpu
) -> None:
    gpu("NVIDIA H100 80GB HBM3")
    facts = attained(Bundle.open(tiny_built), MEASURED, "cuda")
    assert (facts["gpu"], facts["source"]) == ("H100", device("H100").source)
    stages = facts["stages"]
    assert {stage: row["measured_ms"] for stage, row in stages.items()} == {
        VISION_PROJECTOR: 8.0,
        PREFILL: 4.0,
        DECODE: 10.0,
    }
    for row in stages.values():
        assert row["fraction"] == pytest.approx(row["roofline_ms"] / row["measured_ms"])
        assert 0 < row["fraction"] < 1


def test_decoding_reads_weights_and_the_cache_so_far_in_every_step(tiny_built: Path) -> None:
    bundle = Bundle.open(tiny_built)
    ours = attained(bundle, MEASURED, "cpu", SLOW_MEMORY)["stages"][DECODE]["roofline_ms"]
    sizes = {"batch": 1, "seq": 1, "logit_positions": 1, "capacity": 44}
    steps = (
        Workload("step", ("decoder",), {**sizes, "length": length}).costs(bundle.graphs) for length in (41, 42, 43, 44)
    )
    by_hand_ms = sum(sum(cost.bytes for cost in costs) for costs in steps) / 1e3
    assert ours == pytest.approx(by_hand_ms, rel=1e-3)


@pytest.mark.parametrize("name", ["NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "AMD EPYC"])
def test_a_device_with_other_rates_has_no_roofline_unless_one_is_named(tiny_built: Path, gpu, name: str) -> None:
    gpu(name)
    bundle = Bundle.open(tiny_built)
    facts = attained(bundle, MEASURED, "cuda")
    assert facts["gpu"] is None
    assert name in facts["why"]
    assert attained(bundle, MEASURED, "cuda", device("L4"))["gpu"] == "L4"


def test_stages_whose_graph_the_bundle_does_not_hold_are_omitted(tiny_built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_built, tmp_path / "bundle"))
    bundle = Bundle.open(folder)
    (bundle.graphs / "decoder.onnx").unlink()
    assert list(attained(bundle, MEASURED, "cpu", device("H100"))["stages"]) == [VISION_PROJECTOR]
    shutil.rmtree(bundle.graphs)
    assert "no graphs" in attained(bundle, MEASURED, "cpu", device("H100"))["why"]
