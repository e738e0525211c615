"""A real build, killed with SIGKILL at random moments, ends in the same bytes as an undisturbed one, and what it had
written of a stage is not computed again.

`R1V_KILLS=20 pytest tests/pipeline/test_resume.py` kills more often than the suite does.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch import Tensor

from r1v_export import hashed_files
from r1v_export.checkpoint import tensor_writer
from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.manifest import MANIFEST, FileEntry
from r1v_export.pipeline import build as pipeline
from r1v_export.pipeline import run_stages, workspace
from r1v_export.pipeline.calibration import CALIBRATION
from r1v_export.pipeline.stages import Build
from r1v_export.pipeline.workspace import kept_folder
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.blocks import Block
from r1v_export.quantization.calibration.blockwise_runner import BlockwiseRunner
from r1v_export.quantization.calibration.calibrate import Quantization
from r1v_export.quantization.quantized_block import QuantizedBlock
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.quantization.statistics.activation_statistics import BlockStatistics

KILLS = int(os.environ.get("R1V_KILLS", "4"))


def build(model: Path, config: Path, out: Path, kill_after_s: float = float("inf")) -> tuple[bool, float]:
    """Build in a child process, killed once it has computed for so many seconds.

    Returns whether it came to its end, and the processor time that it took: the clock on the wall would make a busy
    machine kill at other moments than an idle one.
    """
    command = [sys.executable, "-m", "r1v_export.cli.main", "build", str(model)]
    options = ["--config", str(config), "-o", str(out)]
    child = psutil.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    taken_s = 0.0
    while child.status() != psutil.STATUS_ZOMBIE:
        taken_s = sum(child.cpu_times()[:2])
        if taken_s >= kill_after_s:
            child.kill()
        time.sleep(0.02)
    return child.wait() == 0, taken_s


@pytest.mark.slow
def test_killed_at_random_moments_a_build_ends_in_the_same_bytes(
    tiny_model: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    config = tmp_path / "build.yaml"
    config.write_text("parity: {questions: 1, max_new_tokens: 2}\n")
    finished, whole_s = build(tiny_model, config, tmp_path / "undisturbed")
    assert finished
    expected = tree(tmp_path / "undisturbed")

    rng, out, kills = random.Random(2026), tmp_path / "out", 0
    while kills < KILLS:
        finished, _ = build(tiny_model, config, out, rng.uniform(0, whole_s))
        if finished:  # sooner than the kill: begin anew, to be killed elsewhere
            assert tree(out) == expected
            shutil.rmtree(out)
            continue
        kills += 1
        if (out / MANIFEST).exists():
            assert tree(out).keys() >= expected.keys(), "a manifest means a whole bundle"
    finished, _ = build(tiny_model, config, out)
    assert finished
    assert tree(out) == expected


def note_every_part(patch: pytest.MonkeyPatch) -> None:
    """Files of a few tensors, noted after every tensor."""
    patch.setattr(tensor_writer, "SHARD_BYTES", 30_000)
    patch.setattr(hashed_files, "NOTED_BYTES", 0)


def record_reads(patch: pytest.MonkeyPatch, kill_at: int = -1) -> list[str]:
    """Names of the quantized linears that are computed for a graph or an engine, in order; this process is killed when
    it asks for one after so many."""
    read, names = Artifact.linear, list[str]()

    def linear(artifact: Artifact, name: str) -> QuantizedLinear:
        if len(names) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        names.append(name)
        return read(artifact, name)

    patch.setattr(Artifact, "linear", linear)
    return names


def build_and_die(config: BuildConfig, out: Path, kill_at: int) -> None:
    patch = pytest.MonkeyPatch()
    note_every_part(patch)
    record_reads(patch, kill_at)
    pipeline.build(config, out)


def run_until_killed(run: Callable[..., None], *arguments: object) -> None:
    child = multiprocessing.get_context("spawn").Process(target=run, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_within_a_stage_it_goes_on_behind_what_is_written(
    tiny_model: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BuildConfig(
        model=str(tiny_model),
        precision="int4",
        recipe="int4-rtn",
        targets={"hf-unified": {}},
        parity=ParityConfig(enabled=False),
    )
    note_every_part(monkeypatch)
    names = record_reads(monkeypatch)
    pipeline.build(config, tmp_path / "undisturbed")
    expected, out = [*names], tmp_path / "out"
    run_until_killed(build_and_die, config, out, len(expected) - 2)
    assert len([*(out / ".work" / "hf-unified-engine").rglob("*.safetensors")]) > 1
    names.clear()
    built = pipeline.build(config, out)
    assert built.ran[0] == "hf-unified-engine"
    assert names == expected[-len(names) :]
    assert len(names) < len(expected), "the first file was finished"
    assert tree(out) == tree(tmp_path / "undisturbed")


@dataclass
class Computed:
    """What is computed of calibrations: blocks that samples went through, and blocks that were quantized."""

    passed: list[str] = field(default_factory=list)
    quantized: list[str] = field(default_factory=list)


def record_calibrations(patch: pytest.MonkeyPatch) -> Computed:
    computed = Computed()
    run_block, quantize = BlockwiseRunner._run_block, Quantization.quantize

    def run(runner: BlockwiseRunner, index: int, block: Block, *args: Any, **kwargs: Any) -> BlockStatistics:
        computed.passed.append(block.name)
        return run_block(runner, index, block, *args, **kwargs)

    def quantize_(
        quantization: Quantization, block: Block, *args: Mapping[str, Tensor], **kwargs: Any
    ) -> QuantizedBlock:
        computed.quantized.append(block.name)
        return quantize(quantization, block, *args, **kwargs)

    patch.setattr(BlockwiseRunner, "_run_block", run)
    patch.setattr(Quantization, "quantize", quantize_)
    return computed


def die_before_a_calibration_is_recorded(patch: pytest.MonkeyPatch) -> None:
    """Where its files are there, and not hashed yet."""

    def stage_files(folder: Path, written: object = None) -> Mapping[str, FileEntry]:
        if (folder / CALIBRATION).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return workspace.stage_files(folder)

    patch.setattr(run_stages, "stage_files", stage_files)


def calibrate_and_die(config: BuildConfig, out: Path) -> None:
    die_before_a_calibration_is_recorded(pytest.MonkeyPatch())
    pipeline.build(config, out)


def test_killed_before_its_record_a_finished_calibration_is_not_computed_again(
    tiny_model: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BuildConfig(
        model=str(tiny_model),
        precision="int4",
        recipe="int4-gptq",
        targets={"hf-unified": {}},
        calibration=CalibrationConfig(samples=2),
        parity=ParityConfig(enabled=False),
    )
    computed = record_calibrations(monkeypatch)
    pipeline.build(config, tmp_path / "undisturbed")
    assert computed.passed
    assert computed.quantized
    computed.passed.clear()
    computed.quantized.clear()
    out = tmp_path / "out"
    run_until_killed(calibrate_and_die, config, out)
    assert not (out / CALIBRATION).exists(), "it is in the workspace alone"
    built = pipeline.build(config, out)
    assert "calibration" in built.ran
    assert computed == Computed()
    assert tree(out) == tree(tmp_path / "undisturbed")


def test_what_a_calibration_keeps_is_gone_once_it_is_recorded(tiny_model: Path, tmp_path: Path) -> None:
    """Seen by the next stage, before the workspace is removed."""
    config = BuildConfig(
        model=str(tiny_model),
        precision="int4",
        recipe="int4-gptq",
        targets={"hf-unified": {}},
        calibration=CalibrationConfig(samples=1),
        parity=ParityConfig(enabled=False),
    )
    seen: list[bool] = []
    make = Build._build_engine

    def look(job: Build, *arguments: Any) -> None:
        seen.append(kept_folder(job.out, "calibration").exists())
        make(job, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Build, "_build_engine", look)
        pipeline.build(config, tmp_path / "out")
    assert seen == [False]
