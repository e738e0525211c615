"""`build`: what its options say reaches the build."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from r1v_export.cli import build, calibrate, main
from r1v_export.cpus import ThreadCount, thread_count, threads_of_tasks, use_threads
from r1v_export.manifest import FileEntry, StageEntry
from r1v_export.pipeline.build import Built
from r1v_export.pipeline.calibrate import Calibrated
from r1v_export.pipeline.ray_cluster import ClusterSize
from tests.manifests import manifest_of


@pytest.fixture
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    use_threads(None)
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_restored")
def test_threads_are_those_of_pytorch_and_of_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1v_export.cli.threads.available_cpus", lambda: ThreadCount(4, "CPU affinity"))
    assert main.run(["build", "--threads", "3", "--dry-run", "--format", "json", "-o", str(tmp_path / "out")]) == 0
    assert torch.get_num_threads() == 3
    assert json.loads(capsys.readouterr().out)["stages"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--precision", "fp16", "--no-parity"],
        ["--recipe", "int8-smoothquant", "--samples", "4", "--effort", "quick"],
        ["--precision", "int4", "--target", "tensorrt-rtx", "--target", "tensorrt-llm", "--sm", "89,120", "--tp", "2"],
        ["--precision", "int4", "--int4-inputs", "int8"],
        ["--budget", "kl=0.02", "--image-policy", "published", "--gate", "streamed"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_printed_config_gives_the_same_config(
    options: list[str], format_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    file = tmp_path / "build.yaml"
    for arguments in (options, ["--config", str(file)]):
        assert main.run(["build", *arguments, "--print-config", "--format", format_]) == 0
        printed.append(capsys.readouterr().out)
        file.write_text(printed[-1], encoding="utf-8")
    assert printed[0] == printed[1]


def test_a_printed_config_gives_the_same_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--precision", "int8", "--samples", "2", "--target", "onnxruntime", "--target", "gguf", "--no-parity"]
    assert main.run(["build", *options, "--print-config"]) == 0
    file = tmp_path / "build.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    plans = []
    for arguments in (options, ["--config", str(file)]):
        out = tmp_path / "out"
        assert main.run(["build", *arguments, "--dry-run", "--format", "json", "-o", str(out)]) == 0
        stages = json.loads(capsys.readouterr().out)["stages"]
        plans.append([(stage["name"], stage["size_bytes"], stage["memory_bytes"]) for stage in stages])
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--pp", "2"], "expected: tensorrt-llm\n  found:    onnxruntime"),
        (
            ["--target", "hf-unified", "--tp", "3"],
            "where:    --tp 3\n  expected: 1, 2, 4 or 8\n  found:    3\n  fix:      correct --tp, or omit it",
        ),
        (
            ["--precision", "fp16", "--target", "tensorrt-llm", "--pp", "99"],
            "where:    --pp 99, or pp of the target tensorrt-llm",
        ),
        (["--tp", "0"], "0 is not in the range"),
    ],
)
def test_gpus_that_no_target_can_share_a_model_over_are_refused(
    options: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["build", *options, "-o", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([""], "MODEL is empty"),
        (["--budget", "size=20B"], "smaller than the model in its smallest precisions"),
        (["--samples", "4"], "without --precision: neither fp32 nor a quantized checkpoint needs"),
        (["--samples", "4", "--precision", "fp16"], "no effect in fp16"),
        (["--calibrated", "none"], "found:    no such folder"),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_cause(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["build", *arguments, "-o", str(tmp_path / "out")]) in (1, 2)
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_no_checkpoint(nano_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["build", str(nano_bundle), "-o", str(tmp_path / "out")]) == 1
    assert "This is a bundle" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "found"), [("", "nothing"), ("- 1", "a list"), ("{bad", "at line 1, column 1")])
def test_a_build_file_that_is_none_is_refused(
    text: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "build.yaml").write_text(text)
    assert main.run(["build", "--config", str(tmp_path / "build.yaml"), "--print-config"]) == 2
    assert found in capsys.readouterr().err


def test_more_threads_than_any_machine_has_cores_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["build", "--threads", "100000000", "--dry-run"]) == 2
    assert "100000000 is not in the range 1 to 4096" in capsys.readouterr().err


def test_more_threads_than_cpus_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1v_export.cli.threads.available_cpus", lambda: ThreadCount(4, "CPU affinity"))
    for command in (["build", "--dry-run"], ["run", "no", "?"], ["serve", "no"], ["bench", "no"], ["check", "no"]):
        assert main.run([*command, "--threads", "5"]) == 2
        said = capsys.readouterr().err
        assert "expected: 1 to 4 (CPU affinity)" in said
        assert "found:    5" in said


@pytest.mark.usefixtures("threads_restored")
@pytest.mark.parametrize("order", [1, -1])
def test_with_ray_the_cpus_of_this_machine_do_not_limit_the_threads_of_tasks(
    order: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1v_export.cli.threads.available_cpus", lambda: ThreadCount(4, "CPU affinity"))
    seen = []

    def ask_cluster(*_: object) -> ClusterSize:
        seen.append((thread_count(), threads_of_tasks()))
        return ClusterSize(workers=2, memory_bytes=1 << 40)

    monkeypatch.setattr("r1v_export.pipeline.build.ask_cluster", ask_cluster)
    options = [["--threads", "32"], ["--ray", "auto"]][::order]
    assert main.run(["build", *options[0], *options[1], "--dry-run", "-o", str(tmp_path / "out")]) == 0
    assert seen == [(ThreadCount(4, "--threads"), ThreadCount(32, "--threads"))]


@pytest.mark.parametrize("option", ["--max-seconds", "--drain-seconds"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_seconds_that_are_not_finite_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["serve", "nowhere", option, value]) == 2
    assert f"'{option}': {value} is not a finite number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--precision", "fp8", "--int4-inputs", "exact"], "no effect in fp8, which has no 4-bit weights"),
        (["--int4-inputs", "int8"], "no 4-bit weights whose inputs could be rounded"),
        (["--precision", "int4", "--int4-inputs", "int8", "--device", "cuda"], "on the CPU only"),
        (["--precision", "int4", "--int4-inputs", "int8", "--target", "hf-unified"], "has the option int4_inputs"),
        (["--precision", "int4", "--int4-inputs", "float32"], "is not one of"),
    ],
)
def test_8_bit_inputs_are_refused_where_nothing_would_round_them(
    options: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["build", *options, "-o", str(tmp_path / "out")]) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["serve"], ["deploy", "triton"]])
@pytest.mark.parametrize("option", ["--cache-mib", "--image-cache-mib"])
def test_a_cache_larger_than_any_memory_is_refused(
    command: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*command, "nowhere", option, str(10**12)]) == 2
    assert f"'{option}': {10**12} is not in the range" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "out"])
def test_a_dry_run_into_a_file_is_refused_as_the_build_is(
    below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    for options in ([], ["--dry-run"]):
        assert main.run(["build", *options, "-o", str(file / below)]) == 2
        assert "The output folder cannot be written to." in capsys.readouterr().err
    assert file.stat().st_size == 0


@pytest.mark.parametrize(("samples", "said"), [(1, "from 1 sample"), (2, "from 2 samples")])
def test_a_calibration_of_one_sample_says_so(samples: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate._print(Calibrated(Path("a"), "fp8", samples, None, 46, (), up_to_date=False), "text")
    assert capsys.readouterr().out == f"a: 46 linears by recipe fp8, {said}\n"


def test_the_closing_line_says_how_much_of_the_bundle_is_hard_links(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "first").write_bytes(b"x" * 2000)
    entry = FileEntry(sha256="0" * 64, size=2000)
    one = manifest_of({"engine": StageEntry(fingerprint="0" * 64, files={"first": entry})})
    build._print_built(Built(tmp_path, one, ("engine",)), "text")
    assert capsys.readouterr().out == f"{tmp_path}: 1 file, 2.0 kB; parity with PyTorch holds\n"
    os.link(tmp_path / "first", tmp_path / "second")
    two = manifest_of({"engine": StageEntry(fingerprint="0" * 64, files={"first": entry, "second": entry})})
    build._print_built(Built(tmp_path, two, ("engine",)), "text")
    said = capsys.readouterr().out
    assert said == f"{tmp_path}: 2 files, 4.0 kB, 2.0 kB of them hard links; parity with PyTorch holds\n"


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (0.4, "Times are for 2 threads on CPUs that do nothing else.\n"),
        (13.0, "nothing else; the load was 13.0 in the last minute, on 2 CPUs, so that a build takes longer now.\n"),
    ],
)
@pytest.mark.usefixtures("threads_restored")
def test_a_plan_says_for_what_its_times_hold(
    load: float, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr("psutil.getloadavg", lambda: (load, 1.0, 1.0))
    command = ["build", "--threads", "2", "--dry-run", "-o", str(tmp_path / "out")]
    assert main.run(command) == 0
    assert said in capsys.readouterr().out
    assert main.run([*command, "--format", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["threads"], plan["load"]) == (2, load)
