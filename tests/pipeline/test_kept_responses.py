"""The model's responses to prompts without an answer: generated once, whatever is killed in between."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.errors import BundleError
from r1v_export.pipeline import kept_responses
from r1v_export.pipeline.calibrate import calibrate_alone
from r1v_export.pipeline.kept_responses import KeptResponses
from r1v_export.progress import Progress
from r1v_export.quantization.calibration.blockwise_runner import BlockwiseRunner
from r1v_export.quantization.calibration.raw_examples import RawExample, read_examples
from r1v_export.runner.engine_runner import EngineRunner

PROMPTS = 10
"""Two batches, of eight and two."""


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Prompts about one image, without answers."""
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    records = [json.dumps({"image": "red.png", "prompt": f"What is number {index}?"}) for index in range(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(records) + "\n")
    return tmp_path / "prompts.jsonl"


def record_batches(patch: pytest.MonkeyPatch, kill_at: int = -1) -> list[int]:
    """How many requests each call of the model answers; this process is killed when it is called after so many."""
    answers, batches = EngineRunner.answers, list[int]()

    def answer(runner: EngineRunner, requests: Sequence[Any], *arguments: Any) -> Any:
        if len(batches) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        batches.append(len(requests))
        return answers(runner, requests, *arguments)

    patch.setattr(EngineRunner, "answers", answer)
    patch.setattr(kept_responses, "MAX_RESPONSE_TOKENS", 3)
    return batches


def calibrate(config: BuildConfig, out: Path) -> None:
    calibrate_alone(config, out, Progress(quiet=True))


def die_before_the_second_batch(config: BuildConfig, out: Path) -> None:
    record_batches(pytest.MonkeyPatch(), kill_at=1)
    calibrate(config, out)


def die_before_the_first_block(config: BuildConfig, out: Path) -> None:
    def run_block(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    patch = pytest.MonkeyPatch()
    record_batches(patch)
    patch.setattr(BlockwiseRunner, "_run_block", run_block)
    calibrate(config, out)


def test_a_resumed_calibration_generates_no_response_again(
    tiny_model: Path,
    prompts: Path,
    tmp_path: Path,
    tree: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calibration = CalibrationConfig(data=str(prompts), effort="full")
    config = BuildConfig(model=str(tiny_model), precision="fp8", recipe="fp8-tensor", calibration=calibration)
    batches = record_batches(monkeypatch)
    calibrate(config, tmp_path / "undisturbed")
    assert batches == [8, 2]
    for die, left in ((die_before_the_second_batch, [2]), (die_before_the_first_block, [])):
        out = tmp_path / die.__name__
        child = multiprocessing.get_context("spawn").Process(target=die, args=(config, out))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        batches.clear()
        calibrate(config, out)
        assert batches == left
        assert tree(out) == tree(tmp_path / "undisturbed")
    kept = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert not kept, "a calibration that is finished keeps nothing"


@pytest.fixture
def examples(prompts: Path) -> list[RawExample]:
    return read_examples(prompts, PROMPTS)


def test_what_decides_a_response_decides_whether_it_is_kept(
    tiny_model: Path, prompts: Path, examples: list[RawExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, folder = record_batches(monkeypatch), tmp_path / "responses"
    checkpoint, config = Checkpoint.open(str(tiny_model)), BuildConfig()
    keeper = KeptResponses(folder, checkpoint, config)
    first = keeper(examples[:2])
    assert KeptResponses(folder, checkpoint, config)(examples[:2]) == first
    assert batches == [2]
    keeper(examples[1:3])
    assert batches == [2, 2], "other prompts"
    Image.new("RGB", (40, 40), "blue").save(prompts.with_name("red.png"))
    keeper(examples[:2])
    assert batches == [2, 2, 2], "another image"
    monkeypatch.setattr(kept_responses, "MAX_RESPONSE_TOKENS", 2)
    KeptResponses(folder, checkpoint, config)(examples[:2])
    assert batches == [2, 2, 2, 2], "another length"


def test_damaged_responses_are_refused(
    tiny_model: Path, examples: list[RawExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_batches(monkeypatch)
    keeper = KeptResponses(tmp_path / "responses", Checkpoint.open(str(tiny_model)), BuildConfig())
    keeper(examples[:1])
    (path,) = (tmp_path / "responses").iterdir()
    path.write_text("{")
    with pytest.raises(BundleError, match="Kept responses are damaged"):
        keeper(examples[:1])
