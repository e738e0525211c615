"""Records of events: fields next to the message, from calibration to answer, and nothing of what a user asks."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.log_event import log_event
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.recipe import load
from r1v_export.runner.conversation import Conversation
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.open_runner import open_runner
from r1v_export.targets.hf_unified.write.checkpoint import write_unified
from tests.quantization.calibration_cases import small_set


def test_a_field_is_in_the_message_and_an_attribute_of_the_record(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "r1v_export"):
        log_event(logging.getLogger("r1v_export.stage"), logging.INFO, "%(stage)s: %(files)d files", stage="a", files=2)
    (record,) = caplog.records
    assert record.getMessage() == "a: 2 files"
    assert (vars(record)["stage"], vars(record)["files"]) == ("a", 2)
    assert record.funcName == "test_a_field_is_in_the_message_and_an_attribute_of_the_record"


def test_a_conversation_logs_sizes_reuse_and_times_and_no_content(
    nano_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = open_runner(nano_bundle)
    assert isinstance(runner, EngineRunner)
    conversation = Conversation(runner)
    with caplog.at_level(logging.DEBUG, "r1v_export.runner"):
        for question, images in (("What color is it?", [Image.new("RGB", (56, 56), "red")]), ("Is it large?", [])):
            *_, last = conversation.ask(question, images)
            assert last.answer is not None
            assert question not in caplog.text
            assert last.answer.text not in [word for record in caplog.records for word in vars(record).values()]
    first, second = [vars(record) for record in caplog.records if "tiles" in vars(record)]
    assert (first["images"], first["tiles"]) == (1, 1)
    reused = [vars(record)["reused_tokens"] for record in caplog.records if "reused_tokens" in vars(record)]
    assert reused[0] == 0
    assert reused[1] > 0
    assert second["tokens"] > first["tokens"]
    ends = [vars(record) for record in caplog.records if "finish_reason" in vars(record)]
    assert [end["finish_reason"] for end in ends] == ["stop", "stop"]
    times = [vars(record) for record in caplog.records if "prefill_ms" in vars(record)]
    assert len(times) == 2
    assert all(time["decode_ms"] > 0 for time in times)


def test_a_calibration_logs_its_blocks_and_ranges_and_a_checkpoint_its_formats(
    synth_checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "r1v_export"):
        calibrate(synth_checkpoint, load("fp8-tensor"), small_set(synth_checkpoint), tmp_path / "calibration")
        artifact = Artifact.open(tmp_path / "calibration", synth_checkpoint)
        (tmp_path / "out").mkdir()
        write_unified(synth_checkpoint, artifact, tmp_path / "out")
    records = [vars(record) for record in caplog.records]
    ranges = {record["group"]: record["input_range"] for record in records if "input_range" in record}
    assert ranges == pytest.approx({name: artifact.stats.inputs[name].absmax for name in ranges}, rel=1e-6)
    assert "language_model.model.layers.1.mlp.down_proj" in ranges
    quantized = [record for record in records if "quantization" in record]
    assert sum(record["linears"] for record in quantized) == len(artifact.schemes)
    assert {record["quantization"] for record in quantized} == {"fp8 per tensor by rtn, fp8 static inputs"}
    formats = {record["linear"]: record["algorithm"] for record in records if "linear" in record}
    assert formats == dict.fromkeys(artifact.schemes, "FP8")
    (written,) = [record for record in records if record["name"] == "r1v_export.targets.hub_folder"]
    assert written["files"] == 1
    assert written["size_bytes"] < (tmp_path / "out" / "model.safetensors").stat().st_size
