"""The command line as a whole: instant help, frozen options, and every error one message with its exit code."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from r1v_export import errors
from r1v_export.cli import main
from r1v_export.cli.build import PRECISIONS
from r1v_export.cli.output import common_options, shown_progress
from r1v_export.config import BuildConfig
from r1v_export.targets.entry_points import DESCRIBED, names
from r1v_export.targets.interface import DescribesEngines
from r1v_export.targets.registry import get_target

HEAVY = ("torch", "numpy", "pydantic", "onnx", "onnx_ir", "onnxruntime", "PIL", "yaml", "psutil", "huggingface_hub")

OPTIONS = {
    "build": "MODEL --precision --target --output --config --recipe --calib --samples --effort "
    "--matmul-precision --activation-memory --saved-share --budget --calibrated --revision --offline --device "
    "--image-policy --sm --tp --pp --int4-inputs --link-weights --no-parity --gate --dry-run --print-config --force "
    "--shards --ray --threads",
    "init": "FILE",
    "engine": "BUNDLE --output --workers --program --print-command",
    "calibrate": "MODEL --precision --recipe --budget --calib --samples --effort --matmul-precision "
    "--activation-memory --saved-share --image-policy --shard --merge --output "
    "--revision --offline --device --shards --ray --threads",
    "check": "BUNDLE --target --vision-target --decoder-target --model --questions --image --allow-url --question "
    "--gate --blocks --against --max-new-tokens --report --device --threads",
    "verify": "BUNDLE",
    "run": "BUNDLE QUESTION --image --allow-url --video --frames --target --vision-target --decoder-target --engine "
    "--model --no-think --grounding --answer-only --chat --greedy --max-new-tokens --temperature --top-p --top-k "
    "--min-p --repetition-penalty --presence-penalty --frequency-penalty --seed --stop --stop-in-reasoning "
    "--max-reasoning-tokens --json-schema --regex --logprobs --verify --draft-tokens --device --threads",
    "serve": "BUNDLE --host --port --served-model-name --api-key --allow-image-host --max-rows --max-queued "
    "--cache-mib --image-cache-mib --prefill-chunk --draft-tokens --max-body-mib --max-images --max-image-pixels "
    "--max-new-tokens --max-seconds --drain-seconds --access-log --triton --target --vision-target --decoder-target "
    "--engine --model --device --threads",
    "deploy cpp": "BUNDLE --output",
    "deploy triton": "BUNDLE --output --backend --target --vision-target --engine --max-rows --cache-mib "
    "--image-cache-mib --tiles --preprocessors --device",
    "bench": "BUNDLE --image --allow-url --tiles --question --target --vision-target --decoder-target --engine --model "
    "--tokens --runs --batch --roofline --device --threads",
    "diff": "FIRST SECOND --report",
    "inspect": "MODEL --target --roofline --report --precision --recipe --tp --pp --batch --tiles --prompt "
    "--max-new-tokens --revision --offline",
    "recipes list": "",
    "recipes show": "RECIPE",
    "doctor": "",
    "completion": "SHELL",
    "merge-lora": "MODEL --output --adapter",
    "synth": "FOLDER --preset --vision-layers --language-layers --set --layout --dtype --shards --sparse --empty"
    " --awq --seed",
}
"""Every argument and option, frozen: a change here is a change that users see, and goes into the changelog."""

COMMON = "--format --quiet --verbose --log-file --log-format --debug"


def run_in_child(*arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "r1v_export.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)  # type: ignore[call-overload]


def _spelling(parameter: click.Parameter) -> str:
    return max(parameter.opts, key=len) if isinstance(parameter, click.Option) else parameter.human_readable_name


def find(name: str) -> click.Command:
    """A command, or with two words one of a group."""
    command: click.Command | None = main.cli
    for word in name.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    return command


def test_the_commands_are_frozen() -> None:
    assert {name.split()[0] for name in OPTIONS} == set(main.COMMANDS)
    groups = {name: find(name) for name in main.COMMANDS}
    grouped = {
        f"{name} {sub}" for name, group in groups.items() if isinstance(group, click.Group) for sub in group.commands
    }
    assert grouped == {name for name in OPTIONS if " " in name}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_of_a_command_are_frozen(name: str) -> None:
    common = () if name == "completion" else COMMON.split()
    assert [_spelling(p) for p in find(name).params] == [*OPTIONS[name].split(), *common]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_short_help(name: str) -> None:
    command = find(name)
    assert command.short_help
    helps = [p.help or "" for p in command.params if isinstance(p, click.Option)]
    assert all(0 < len(text) < 90 and text[0] == text[0].upper() for text in helps)
    assert not [text for text in helps if text.startswith(("Of ", "In a ", "After "))], "says of what, but not what"


def test_the_precisions_offered_are_those_of_the_config() -> None:
    assert set(PRECISIONS) == set(BuildConfig.model_json_schema()["properties"]["precision"]["enum"])


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["run", "-h"], ["--version"], ["nonsense"]])
def test_help_imports_nothing_heavy(arguments: Sequence[str]) -> None:
    code = f"import sys; from r1v_export.cli.main import run; run({arguments}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(done.stderr.split())


@pytest.mark.parametrize("command", ["build", "check", "run", "serve", "bench", "deploy triton"])
def test_the_help_of_target_lists_every_target(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*command.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"One of {', '.join(names())}" in shown


def test_the_help_of_inspect_lists_the_targets_that_it_shows() -> None:
    shown = [name for name in names() if isinstance(get_target(name), DescribesEngines)]
    assert list(DESCRIBED) == shown


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    def cpu_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    taken = []
    for _ in range(5):
        before = cpu_s()
        assert run_in_child("--help").returncode == 0
        taken.append(cpu_s() - before)
    assert min(taken) < 0.3


def exit_with(error: BaseException, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Exit code of a `doctor` that raises."""

    @click.command()
    @click.option("--format", "format_")
    @click.option("--debug", is_flag=True)
    def command(format_: str, debug: bool) -> None:
        raise error

    monkeypatch.setattr("r1v_export.cli.doctor.command", command)
    return main.run(["doctor", *options])


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (errors.R1VError, 1),
        (errors.CheckpointError, 1),
        (errors.GraphError, 1),
        (errors.BundleError, 1),
        (errors.InputError, 1),
        (errors.UsageError, 2),
        (errors.ParityError, 3),
        (errors.CapabilityError, 4),
    ],
)
def test_every_class_of_error_has_its_exit_code_and_no_traceback(
    kind: type[errors.R1VError], exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = kind("It broke.", where="here", expected=1, found=2, fix="mend it")
    assert exit_with(error, monkeypatch) == exit_code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "error: It broke.",
        "  where:    here",
        "  expected: 1",
        "  found:    2",
        "  fix:      mend it",
    ]


def test_an_error_is_json_on_stdout_where_json_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = errors.BundleError("It broke.", where=Path("x"), found=2)
    assert exit_with(error, monkeypatch, "--format", "json") == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    assert json.loads(printed.out) == {
        "error": "BundleError",
        "exit_code": 1,
        "what": "It broke.",
        "where": "x",
        "expected": None,
        "found": "2",
        "fix": None,
    }


def test_a_bug_is_one_line_and_how_to_see_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_with(KeyError("a\nb"), monkeypatch) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: KeyError: 'a\\nb'",
        "  fix:      run with --debug for the traceback",
    ]


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_with(errors.R1VError("It broke."), monkeypatch, "--debug") == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_control_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_with(KeyboardInterrupt(), monkeypatch) == 128 + signal.SIGINT
    assert "Interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("group", [[], ["recipes"], ["deploy"]])
def test_a_group_alone_shows_its_help(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(group) == 0
    alone = capsys.readouterr()
    assert main.run([*group, "--help"]) == 0
    assert (alone.out, alone.err) == (capsys.readouterr().out, "")


@pytest.mark.parametrize(("variables", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_sees_errors_in_color_unless_no_color_is_set(variables: dict[str, str], colored: bool) -> None:
    terminal, other = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | variables
    command = [sys.executable, "-m", "r1v_export.cli.main", "nonsense"]
    subprocess.run(command, stderr=other, env=environment, timeout=120, check=False)
    os.close(other)
    shown = os.read(terminal, 1 << 12).decode()
    os.close(terminal)
    assert "No such command" in shown
    assert ("\x1b[31m" in shown) is colored


def test_a_terminal_breaks_the_lines_of_an_error_at_words_and_no_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fix = "calibrate again: r1v-export calibrate MODEL -o FOLDER, or use `pip install 'a thing'` (or nothing at all)"
    fix += "\ndocker run -v a:b image"
    what, where = "There is no such thing as was asked for.", "r1v-export check bundle"
    error = errors.UsageError(what, where=where, found="a, b, c and 7 more", fix=fix)
    monkeypatch.setattr(main.cli, "main", lambda **_: (_ for _ in ()).throw(error))
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main.run(["recipes"])
    assert capsys.readouterr().err.splitlines() == [
        "error: There is no such",
        "  thing as was asked",
        "  for.",
        "  where:    r1v-export check bundle",
        "  found:    a, b, c and",
        "            7 more",
        "  fix:      calibrate",
        "            again:",
        "            r1v-export calibrate MODEL -o FOLDER,",
        "            or use",
        "            `pip install 'a thing'`",
        "            (or nothing",
        "            at all)",
        "docker run -v a:b image",
    ]


@pytest.mark.parametrize("command", [["build"], ["deploy", "triton"]])
def test_an_option_without_its_argument_points_to_the_help_of_its_command(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*command, "-o"]) == 2
    assert f"r1v-export {' '.join(command)} --help" in capsys.readouterr().err


def test_quiet_shows_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    @common_options
    def command(format_: str) -> None:
        progress = shown_progress(format_, 1)
        with progress.stage("one"):
            pass
        progress.note("warning: it is narrow")

    shown = {}
    for options in ([], ["-q"], ["--format", "json"]):
        command.main(options, standalone_mode=False)
        shown[" ".join(options)] = capsys.readouterr().err
    assert shown[""].startswith("[1/1] one: ")
    assert shown[""].endswith("\n  warning: it is narrow\n")
    assert (shown["-q"], shown["--format json"]) == ("  warning: it is narrow\n", "")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["buidl"], "No such command 'buidl'"),
        (["build", "--precison", "fp32"], "--precison"),
        (["build", "--precision", "fp7"], "'fp7' is not one of"),
        (["verify"], "Missing argument 'BUNDLE'"),
        (["completion"], "Choose from: bash, zsh, fish"),
        (["biuld"], "Did you mean 'build'?"),
        (["build", "--samples", "x"], "'x' is not a valid integer."),
        (["synth", "x", "--sparse", "--empty"], "either sparse or empty"),
        (["build", "--effort", "quick"], "no effect without --precision"),
        (["build", "--precision", "fp8", "--calibrated", "x", "--samples", "4"], "no effect with --calibrated"),
        (["build", "--no-parity", "--gate", "whole"], "no effect without the parity gate"),
        (["check", "x", "--questions", "0"], "not in the range"),
        (["synth", "x", "--set", "no-value"], "no value"),
        (["synth", "x", "--set", "unknown=1"], "or a key of vision_config or llm_config"),
        (["synth", "x", "--set", "rope_theta=1"], "did you mean llm_config.rope_theta?"),
        (["synth", "x", "--set", "vision_config.num_hiden_layers=1"], "did you mean vision_config.num_hidden_layers?"),
        (["synth", "x", "--set", "llm_config.rope_scaling.x.y=1", "--set", "llm_config.zzz=1"], "llm_config.zzz"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_points_to_help(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == 2
    assert what in capsys.readouterr().err
    assert main.run([*arguments, "--format", "json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_a_page_that_cannot_be_read_any_more_does_not_end_the_command_without_a_word() -> None:
    code = """
import os, signal, click
from r1v_export.cli import main
main.Commands.get_command = lambda *_: click.Command("doctor", callback=lambda: os.kill(os.getpid(), signal.SIGBUS))
import sys; sys.argv[1:] = ["doctor"]; main.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGBUS
    assert "Bus error" in done.stderr


def test_a_reader_that_leaves_early_is_no_error_message() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-m", "r1v_export.cli.main", "inspect", "--help"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["verify", "check", "bench", "inspect"])
def test_a_folder_that_is_no_bundle_is_one_message(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([command, str(tmp_path / "nowhere")]) == 1
    assert "error: Th" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--precision", "fp16", "--recipe", "fp8"], "a recipe is for quantized precisions, not fp16"),
        (["--precision", "fp8", "--recipe", "int4-awq"], "expected: int4, of the fewest bits"),
        (["--recipe", "fp9"], "no recipe 'fp9'"),
        (["--precision", "fp8", "--recipe", "fp9"], "no recipe 'fp9'"),
        (["--precision", "fp8", "--recipe", "none.yaml"], "cannot be read"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_a_usage_error(
    options: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["build", *options, "-o", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipes", "list"]) == 0
    listed = capsys.readouterr().out
    assert "int4-awq" in listed
    assert main.run(["recipes", "show", "fp8", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "fp8"


def test_a_model_that_is_not_there_is_said_before_a_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["build", str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 1
    assert "no such checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Panic(BaseException):
    """As of a library in Rust."""


@pytest.mark.parametrize(
    ("error", "exit_code", "what"),
    [
        (MemoryError(), 4, "Out of memory."),
        (OSError(28, "No space left on device"), 4, "The disk is full."),
        (RecursionError("maximum recursion depth exceeded"), 1, "RecursionError: maximum recursion depth exceeded"),
        (OverflowError("int too large"), 1, "OverflowError: int too large"),
        (Panic("called unwrap"), 1, "Panic: called unwrap"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
    ids=repr,
)
def test_what_no_command_expects_is_one_message(
    error: BaseException,
    exit_code: int,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_with(error, monkeypatch, "--format", "json") == exit_code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["what"] == what
    assert not printed.err.strip()
