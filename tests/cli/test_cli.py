"""Each command on a real bundle of the shipped model: what it prints, and where."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.cli import inspect, main
from r1v_export.manifest import verify
from r1v_export.parity.schema import ParityReport
from r1v_export.runner.bench import Measurement, measure
from r1v_export.targets.entry_points import names
from r1v_export.version import VERSION

IMAGES = Path(__file__).parents[2] / "examples" / "images"
ASKED = ["--image", str(IMAGES / "05-chart.png"), "How tall is the green bar?"]


@pytest.fixture
def succeed(capsys: pytest.CaptureFixture[str]):
    """Run a command line that must succeed; its stdout, and parsed where JSON was asked for."""

    def run(*arguments: str | Path) -> Any:
        assert main.run([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
        printed = capsys.readouterr().out
        return json.loads(printed) if "json" in arguments else printed

    return run


def test_run_prints_the_reasoning_in_tags_and_then_the_answer(nano_bundle: Path, succeed) -> None:
    as_json = succeed("run", nano_bundle, *ASKED, "--format", "json")
    assert as_json["reasoning"]
    assert (as_json["finish_reason"], as_json["reasoning_complete"]) == ("stop", True)
    assert succeed("run", nano_bundle, *ASKED) == f"<think>\n{as_json['reasoning']}\n</think>\n{as_json['text']}\n"


def test_run_without_a_reasoning_prints_the_answer_alone(nano_bundle: Path, succeed) -> None:
    as_json = succeed("run", nano_bundle, *ASKED, "--no-think", "--format", "json")
    assert as_json["reasoning"] == ""
    assert succeed("run", nano_bundle, *ASKED, "--no-think") == as_json["text"] + "\n"


def test_run_on_pytorch_gives_the_same_tokens(nano_bundle: Path, succeed) -> None:
    tokens = [
        succeed("run", nano_bundle, *ASKED, "--target", target, "--format", "json")["token_ids"]
        for target in ("onnxruntime", "pytorch")
    ]
    assert tokens[0] == tokens[1]


def test_run_samples_by_seed(nano_bundle: Path, succeed) -> None:
    options = ["--temperature", "5", "--max-new-tokens", "12", "--format", "json"]
    first, again, other = (
        succeed("run", nano_bundle, *ASKED, *options, "--seed", seed)["token_ids"] for seed in ("1", "1", "2")
    )
    assert first == again
    assert first != other


def test_run_says_when_an_answer_is_cut_off(nano_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["run", str(nano_bundle), *ASKED, "--max-new-tokens", "3"]) == 0
    assert "--max-new-tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "exit_code", "what"),
    [
        (["--image", "no-such.png", "?"], 1, "no-such.png"),
        (["--top-p", "0", "?"], 2, "top_p"),
    ],
)
def test_run_refuses_what_it_cannot_use(
    nano_bundle: Path, arguments: list[str], exit_code: int, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["run", str(nano_bundle), *arguments]) == exit_code
    assert what in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tensorrt", "no-such-target"])
def test_every_command_refuses_a_target_that_the_bundle_lacks_in_the_same_words(
    nano_bundle: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [["run", nano_bundle, "?"], ["deploy", "triton", nano_bundle, "-o", tmp_path / "out"]]
    commands += [[command, nano_bundle] for command in ("check", "serve", "bench", "inspect")]
    for command in commands:
        assert main.run([*map(str, command), "--target", name, "--format", "json"]) == 2, command
        error = json.loads(capsys.readouterr().out)
        assert error["error"] == "UsageError"
        assert error["what"] == "There is no such target in the bundle."
        assert (error["expected"], error["found"]) == ("onnxruntime", name)


@pytest.mark.parametrize("command", ["run", "check", "serve", "bench"])
def test_images_are_encoded_by_no_target_that_the_bundle_lacks(
    nano_bundle: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["?"] if command == "run" else []
    assert main.run([command, str(nano_bundle), *asked, "--vision-target", "gguf"]) == 2
    printed = capsys.readouterr().err
    assert "Nothing in the bundle encodes images by this name." in printed
    assert "found:    gguf, for the engine onnxruntime" in printed


@pytest.mark.parametrize("command", ["run", "check", "serve", "bench"])
def test_answers_are_decoded_by_nothing_that_the_engine_has_no_part_for(
    nano_bundle: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["?"] if command == "run" else []
    assert main.run([command, str(nano_bundle), *asked, "--decoder-target", "openvino"]) == 2
    printed = capsys.readouterr().err
    assert "The engine's answers cannot be decoded by this target." in printed
    assert "where:    --decoder-target openvino" in printed


def test_an_engine_that_decodes_by_itself_leaves_nothing_to_others(
    nano_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, what in (
        ("--vision-target", "encodes images itself"),
        ("--decoder-target", "is not decoded by another one"),
    ):
        pair = ["--engine", str(tmp_path), option, "onnxruntime"]
        assert main.run(["run", str(nano_bundle), "?", *pair]) == 2
        assert f"An engine whose library decodes {what}." in capsys.readouterr().err


def test_check_writes_a_report_with_latencies_that_leaves_the_bundle_valid(
    nano_bundle: Path, tmp_path: Path, succeed
) -> None:
    bundle = Path(shutil.copytree(nano_bundle, tmp_path / "bundle"))
    printed = succeed("check", bundle, "--questions", "2", "--max-new-tokens", "4")
    assert "2 of 2 answers are the same" in printed
    assert "FAIL" not in printed
    report = ParityReport.model_validate_json((bundle / "report/local/parity.json").read_bytes())
    assert {latency.stage for latency in report.latency} >= {"vision", "decode"}
    assert (bundle / "report/local/parity.html").is_file()
    verify(bundle)


def test_check_finds_a_changed_weight_and_ends_with_3(
    nano_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(nano_bundle, tmp_path / "bundle"))
    with (bundle / "graphs/embed.data").open("r+b") as file:
        file.write(b"\x00\x00\x80\x3f" * 256)
    options = ["--questions", "1", "--max-new-tokens", "2", "--format", "json"]
    assert main.run(["check", str(bundle), *options]) == 3
    printed = capsys.readouterr().out
    assert '"first_bad": "embeds"' in printed
    assert '"error": "ParityError"' in printed


def test_check_of_own_images_writes_where_it_is_reported(nano_bundle: Path, tmp_path: Path, succeed) -> None:
    report = tmp_path / "report"
    image = IMAGES / "02-shape.png"
    options = ["--image", image, "--question", "What is it?", "--max-new-tokens", "2", "--report", report]
    result = succeed("check", nano_bundle, *options, "--vision-target", "onnxruntime", "--format", "json")
    assert [sample["question"] for sample in result["samples"]] == ["What is it?"]
    assert {path.name for path in report.iterdir()} == {"parity.json", "parity.html"}


def test_verify_counts_files(nano_bundle: Path, succeed) -> None:
    result = succeed("verify", nano_bundle, "--format", "json")
    assert result["ok"]
    assert result["files"] == sum(path.is_file() for path in nano_bundle.rglob("*")) - 1
    assert succeed("verify", nano_bundle).startswith(f"ok: {result['files']} files")


def test_bench_measures_every_stage(nano_bundle: Path, succeed) -> None:
    options = ["--tokens", "4", "--runs", "2"]
    result = succeed("bench", nano_bundle, *options, "--format", "json")
    assert result["new_tokens"] == 4
    assert all(ms > 0 for name, ms in result["stages_ms"].items() if name != "read_ms")
    assert result["image"]["source"] == "synthetic"
    assert result["first_token_ms"] > result["stages_ms"]["vision_ms"]
    # Of few runs, medians of rates contradict medians of times.
    assert result["tokens_per_s"] == pytest.approx(1000 / result["latency_ms"]["time_per_output_token"]["p50"], 0.01)
    assert result["total_tokens_per_s"] == pytest.approx(
        4000 / statistics.median(run["total_ms"] for run in result["raw"]), 0.01
    )
    assert result["peak_memory_bytes"] > 50e6
    assert result["roofline"]["gpu"] is None
    assert result["load"]["own_cpus"] > 0
    text = succeed("bench", nano_bundle, *options)
    assert "tokens/s" in text
    assert "no roofline" in text
    assert "Not measured" in text


def test_bench_of_several_sequences_gives_percentiles_of_its_raw_numbers(nano_bundle: Path, succeed, capsys) -> None:
    options = ["bench", nano_bundle, "--tokens", "4", "--runs", "2", "--batch", "3"]
    result = succeed(*options, "--format", "json")
    sequences = [sequence for run in result["raw"] for sequence in run["sequences"]]
    assert [len(sequence["token_ms"]) for sequence in sequences] == [4] * 6
    assert all(sequence["reused_tokens"] == 0 for sequence in sequences)
    found = result["latency_ms"]
    assert {name: row["values"] for name, row in found.items()} == {
        "first_token": 6,
        "last_token": 6,
        "time_per_output_token": 6,
        "inter_token": 18,
    }
    assert found["first_token"]["p50"] == pytest.approx(
        statistics.median(sequence["token_ms"][0] for sequence in sequences), abs=2e-3
    )
    assert found["last_token"]["max"] == max(sequence["token_ms"][-1] for sequence in sequences)
    means = sorted((s["token_ms"][-1] - s["token_ms"][0]) / 3 for s in sequences)
    assert found["time_per_output_token"]["p90"] == pytest.approx((means[4] + means[5]) / 2, abs=2e-3)
    assert all(row["p50"] <= row["p90"] <= row["p99"] <= row["max"] for row in found.values())
    assert result["warm_up"]["total_ms"] > 0
    assert main.run([*map(str, options), "--roofline", "H100"]) == 2
    assert "--batch 3" in capsys.readouterr().err


def test_bench_counts_the_time_from_the_image_s_file_to_the_last_token(nano_bundle: Path, succeed) -> None:
    options = ["bench", nano_bundle, "--image", IMAGES / "05-chart.png", "--tokens", "3", "--runs", "2"]
    result = succeed(*options, "--format", "json")
    with Image.open(IMAGES / "05-chart.png") as image:
        assert (result["image"]["width"], result["image"]["height"]) == image.size
    assert result["image"]["source"] == "file"
    for run in result["raw"]:
        (sequence,) = run["sequences"]
        stages = dict(sequence["stages_ms"])
        assert stages["read_ms"] > 0
        assert sequence["token_ms"][-1] <= run["total_ms"]
        assert sum(stages.values()) - stages["decode_ms"] < sequence["token_ms"][0] + 1
    text = succeed(*options)
    assert re.search(r"^last token +\d", text, re.MULTILINE)
    size = f"{result['image']['width']} x {result['image']['height']} pixels, 1 tile, "
    assert size + "read from its file" in " ".join(text.split())


def test_bench_makes_an_image_of_so_many_tiles(nano_bundle: Path, succeed, capsys) -> None:
    options = ["bench", nano_bundle, "--tokens", "2", "--runs", "1", "--tiles"]
    few, many = (succeed(*options, count, "--format", "json") for count in (1, 5))
    assert (few["tiles"], many["tiles"]) == (1, 5)
    assert many["image"] == {"width": 2 * few["image"]["width"], "height": 2 * few["image"]["height"]} | {
        "source": "synthetic"
    }
    assert many["prompt_tokens"] - few["prompt_tokens"] == 4 * 16
    for wrong in (["--tiles", "2"], ["--tiles", "1", "--image", str(IMAGES / "05-chart.png")]):
        assert main.run(["bench", str(nano_bundle), "--tokens", "2", "--runs", "1", *wrong]) == 2
        assert "--tiles" in capsys.readouterr().err


def test_bench_fits_into_80_columns(nano_bundle: Path, succeed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = succeed("bench", nano_bundle, "--tokens", "3", "--runs", "1", "--batch", "2").splitlines()
    assert max(map(len, lines)) <= 80


def test_bench_compares_with_the_gpu_that_is_named(nano_bundle: Path, succeed, capsys) -> None:
    options = ["bench", nano_bundle, "--tokens", "2", "--runs", "1"]
    stages = succeed(*options, "--roofline", "h100", "--format", "json")["roofline"]["stages"]
    assert all(0 < row["fraction"] < 1 for row in stages.values())
    assert "roofline of H100" in succeed(*options, "--roofline", "H100")
    assert main.run([*map(str, options), "--roofline", "H1000"]) == 2
    assert "RTX PRO 6000" in capsys.readouterr().err


def test_bench_says_which_stage_was_not_measured(nano_bundle: Path, succeed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that decodes by itself may give all tokens at once."""

    def all_at_once(*args) -> Measurement:
        measured = measure(*args)
        measured["stages_ms"]["decode_ms"] = 0.0
        return measured

    monkeypatch.setattr("r1v_export.runner.bench.measure", all_at_once)
    text = succeed("bench", nano_bundle, "--tokens", "2", "--runs", "1", "--roofline", "H100")
    assert re.search(r"decode +0\.00 +\S+ +not measured", text)


def test_inspect_tells_checkpoint_and_bundle_apart_and_agrees_on_the_model(nano_bundle: Path, succeed) -> None:
    checkpoint = succeed("inspect", "r1v-nano", "--format", "json")
    bundle = succeed("inspect", nano_bundle, "--format", "json")
    assert (checkpoint["what"], bundle["what"]) == ("checkpoint", "bundle")
    assert checkpoint["spec"] == bundle["spec"]
    stored = sum(tensor.nbytes for tensor in Checkpoint.open().tensors.values()) // 2  # bfloat16
    assert sum(checkpoint["parameters"].values()) == stored
    assert bundle["targets"] == ["onnxruntime"]
    language, text = checkpoint["spec"]["language"], succeed("inspect", "r1v-nano")
    assert checkpoint["spec"]["architecture"] in text
    numbers = 2 * language["num_layers"] * language["num_kv_heads"] * language["head_dim"]
    assert checkpoint["cache_numbers_per_token"] == bundle["cache_numbers_per_token"] == numbers
    assert f"{4 * numbers:,} bytes a token in float32" in " ".join(text.split())


def test_inspect_shows_the_parity_verdict_and_the_versions_of_a_bundle(nano_bundle: Path, succeed) -> None:
    text = succeed("inspect", nano_bundle)
    assert re.search(r"^parity, onnxruntime +passed$", text, re.MULTILINE)
    assert "parity, onnxruntime with images by openvino" in text
    assert re.search(rf"^versions [^:]*\bonnxruntime\s+{re.escape(version('onnxruntime'))}\b", text, re.MULTILINE)
    assert re.search(rf"^producer +r1v-export {re.escape(VERSION)}$", text, re.MULTILINE)


def test_inspect_shows_values_of_a_model_as_people_write_them(succeed) -> None:
    text = " ".join(succeed("inspect", "r1v-nano").split())
    for shown in ("qk_norm=yes", "qkv_bias=no", "rope_theta=1000000, rope_scaling=none", "system_message none"):
        assert shown in text
    assert not re.findall(r"None|True|False|\d\.0\b", text)


def test_inspect_says_of_a_gate_that_did_not_run_that_nothing_was_checked() -> None:
    facts = {"parity": {"tensorrt-rtx": "its engines run on a CUDA GPU"}, "parameters": {}, "files": {}}
    text = inspect._as_text({**facts, "cache_numbers_per_token": 1024, "spec": {"dtype": "bfloat16"}})
    assert text.startswith("parity, tensorrt-rtx  not checked: its engines run on a CUDA GPU\n")


def test_doctor_knows_what_is_ready_and_how_to_get_the_rest(succeed) -> None:
    facts = succeed("doctor", "--format", "json")
    assert facts["targets"]["onnxruntime"]["ready"]
    assert "CPUExecutionProvider" in facts["targets"]["onnxruntime"]["found"]["providers"]
    assert facts["targets"]["hf-unified"]["ready"]
    assert facts["targets"]["onnxruntime"]["versions"]["onnxruntime"] == version("onnxruntime")
    assert 0 < facts["machine"]["memory"]["free_bytes"] <= facts["machine"]["memory"]["total_bytes"]
    assert facts["machine"]["threads"]["count"] > 0
    assert set(facts["targets"]) == set(names())


@pytest.mark.parametrize("width", [40, 80, 200])
def test_doctor_fits_into_the_terminal(width: int, succeed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = succeed("doctor").splitlines()
    assert max(map(len, lines)) <= width
    assert all(any(line.startswith(name) for line in lines) for name in names())


def test_doctor_says_what_to_install_for_a_missing_package(succeed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    target = succeed("doctor", "--format", "json")["targets"]["onnxruntime"]
    assert (target["ready"], target["fix"]) == (False, "pip install 'onnxruntime>=1.32'")


def test_synth_writes_a_checkpoint_that_opens(tmp_path: Path, succeed) -> None:
    folder = tmp_path / "model"
    options = ["--vision-layers", "1", "--language-layers", "2", "--dtype", "float16", "--shards", "2"]
    succeed("synth", folder, *options, "--set", "llm_config.rope_theta=1e5")
    checkpoint = Checkpoint.open(folder)
    assert (checkpoint.spec.vision.num_layers, checkpoint.spec.language.num_layers) == (1, 2)
    assert (checkpoint.spec.language.rope_theta, checkpoint.spec.dtype) == (1e5, "float16")
    assert len(list(folder.glob("*.safetensors"))) == 2


def test_synth_blames_the_option_for_what_makes_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["synth", str(tmp_path / "model"), "--set", "llm_config.hidden_size=abc"]) == 2
    assert "give another --set" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (["--preset", "nan"], "did you mean nano?"),
        (["--preset", "gpt"], "name one of these"),
        (["--set", "llm_config.rope_theta"], "--set llm_config.rope_theta=1e6"),
    ],
)
def test_a_mistake_of_synth_is_answered_alone_and_with_the_next_step(
    options: list[str], fix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["synth", str(tmp_path / "model"), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert fix in said


def test_what_is_inspected_and_listed_fits_into_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for line in ("inspect r1v-nano", "recipes list", "inspect r1v-nano --roofline H100"):
        assert main.run(line.split()) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 60, line


def test_a_plan_is_printed_and_nothing_made(tmp_path: Path, succeed) -> None:
    plan = succeed("build", "-o", tmp_path / "out", "--dry-run", "--format", "json")
    assert plan["size_bytes"] == sum(stage["size_bytes"] for stage in plan["stages"]) > 20e6
    assert "decoder-graph" in succeed("build", "-o", tmp_path / "out", "--dry-run")
    assert not (tmp_path / "out").exists()


def test_building_a_whole_bundle_again_says_so(nano_bundle: Path, succeed, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(nano_bundle, tmp_path / "bundle"))
    built = succeed("build", "--config", bundle / "build.yaml", "-o", bundle, "--format", "json")
    assert built["up_to_date"]
