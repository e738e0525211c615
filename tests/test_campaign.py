"""benchmarks/gpu: every step of the campaign on a CPU with small models, and what happens where one fails."""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import campaign, carry, steps
from benchmarks.gpu.steps import STEPS, Context

RATES = {
    "memory_bytes_per_s": 1e10,
    "host_to_device_bytes_per_s": 1e9,
    "float32_flops_per_s": 1e11,
    "float16_flops_per_s": 1e11,
}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context("cpu", True, tmp_path, RATES)


def test_rates_of_this_machine_are_measured_with_its_versions(context: Context) -> None:
    found = STEPS["rates"](context)
    assert found["machine"]["packages"]["torch"]
    assert set(RATES) <= set(found["rates"])
    assert all(rate > 0 for rate in found["rates"].values())


def test_the_provider_computes_a_product(context: Context) -> None:
    assert STEPS["provider"](context)["relative_error"] < 1e-5


@pytest.mark.parametrize(
    ("step", "variants"),
    [
        ("decode", ["fp16, batch 1", "fp16, batch 2", "int4, batch 1", "int4, batch 2"]),
        ("vision", ["1 tiles", "2 tiles"]),
    ],
)
def test_slices_run_and_are_compared_with_the_measured_roofline(
    context: Context, step: str, variants: list[str]
) -> None:
    found = STEPS[step](context)
    for name in variants:
        row = found[name]
        assert "error" not in row
        assert row["finite"]
        assert row["on_cpu"] == []  # that is for GPUs
        assert row["nodes"]["CPUExecutionProvider"] > 10
        roofline = row["roofline, measured rates"]
        assert roofline["fraction"] == pytest.approx(roofline["seconds"] / row["seconds"])


def test_calibration_has_the_seconds_and_the_least_time_of_each_block(context: Context) -> None:
    blocks = STEPS["calibration"](context)["fp8"]["blocks"]
    layer = blocks["language_model.model.layers.0"]
    assert layer["forward_s"] > 0
    assert layer["quantize_s"] > 0
    assert layer["host_to_device_s"] == layer["weight_bytes"] / 1e9


@pytest.mark.slow
def test_nano_is_built_checked_and_measured(context: Context) -> None:
    found = STEPS["nano"](context)["fp32"]
    assert [found[command]["exit_code"] for command in ("build", "check", "bench")] == [0, 0, 0]
    checks = [check for boundary in found["check"]["boundaries"].values() for check in boundary]
    assert checks
    assert all(check["passed"] for check in checks)


def test_a_command_that_fails_gives_its_message(context: Context) -> None:
    found = steps.cli("check", context.work)
    assert found["exit_code"] == 1
    assert "bundle" in found["error"]


@pytest.mark.trt
def test_what_tensorrt_rtx_says_to_compute_capability_9_is_recorded(context: Context) -> None:
    pytest.importorskip("tensorrt_rtx")
    found = STEPS["tensorrt-rtx"](context)
    assert found["projector for 89"]["plan_bytes"] > 1000
    assert "SM90" in found["projector for 90"]["error"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A call of the campaign with these steps and seconds; the names of those that ran."""
    ran: list[str] = []

    def step(name: str, arguments: argparse.Namespace, limit_s: float) -> dict[str, object]:
        ran.append(name)
        return {"error": "no such GPU", "step_s": 1} if name == "decode" else {"step_s": 1}

    def call(*options: str) -> list[str]:
        ran.clear()
        words = ["campaign.py", "--out", str(tmp_path / "out"), "--results", str(tmp_path / "results"), *options]
        monkeypatch.setattr("sys.argv", words)
        campaign.main()
        return list(ran)

    monkeypatch.setattr(campaign, "run_step", step)
    return call


def test_a_failed_step_is_recorded_and_the_next_goes_on(run, tmp_path: Path) -> None:
    assert run("--steps", "decode", "vision") == ["decode", "vision"]
    assert json.loads((tmp_path / "out/decode.json").read_text())["error"] == "no such GPU"
    (results,) = (tmp_path / "results").iterdir()
    assert set(json.loads(results.read_text())) == {"decode", "vision", "others_cores"}


def test_a_call_takes_what_is_left_and_what_fits_its_time(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 300.0])
    monkeypatch.setattr(campaign.time, "monotonic", lambda: next(clock))
    assert run("--steps", "rates", "vision") == ["rates"]
    assert not (tmp_path / "results").exists()
    monkeypatch.setattr(campaign.time, "monotonic", lambda: 0.0)
    assert run("--steps", "rates", "vision") == ["vision"]
    assert (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_step_has_a_process_and_a_time_limit_of_its_own(tmp_path: Path) -> None:
    arguments = argparse.Namespace(out=tmp_path, device="cpu", tiny=True, work=tmp_path)
    assert campaign.run_step("provider", arguments, 600)["providers"] == ["CPUExecutionProvider"]
    assert campaign.run_step("provider", arguments, 0.01)["error"] == "stopped after 0 s"
    arguments.device = "cuda"
    assert "exit code 1" in campaign.run_step("provider", arguments, 600)["error"]


def test_wheels_come_in_parts_and_are_unpacked_when_they_are_whole(tmp_path: Path) -> None:
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some/__init__.py", "x = 1\n" * 100)
    (parts,) = (entry["parts"] for entry in carry.split([wheel], tmp_path / "carried", part_bytes=200).values())
    assert len(parts) > 2
    last = tmp_path / "carried" / parts[-1]["name"]
    content = last.read_bytes()
    last.unlink()
    store = tmp_path / "store"
    assert carry.join(tmp_path / "carried", store) == {wheel.name: {"missing": [last.name]}}
    last.write_bytes(content[:-1] + b"?")
    with pytest.raises(SystemExit, match="damaged"):
        carry.join(tmp_path / "carried", store)
    last.write_bytes(content)
    for part in parts[:-1]:
        (tmp_path / "carried" / part["name"]).unlink()
    assert carry.join(tmp_path / "carried", store) == {wheel.name: "unpacked"}
    assert (store / "site/some/__init__.py").read_text() == "x = 1\n" * 100
