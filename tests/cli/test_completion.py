"""`completion`: the scripts do what they are for in the shells that are here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r1v_export.cli import main
from r1v_export.cli.completion import VARIABLE


def answers(words: str, position: int) -> list[str]:
    """What the program answers to bash's script: the type and value of each completion."""
    environment = os.environ | {VARIABLE: "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    command = [sys.executable, "-m", "r1v_export.cli.main"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split()


def test_commands_options_and_values_are_completed() -> None:
    assert answers("r1v-export me", 1) == ["plain,merge-lora"]
    assert "plain,--no-parity" in answers("r1v-export build --no", 2)
    assert answers("r1v-export build --precision fp", 3) == ["plain,fp32", "plain,fp16", "plain,fp8"]
    assert answers("r1v-export build --target tensorrt-", 3) == ["plain,tensorrt-rtx", "plain,tensorrt-llm"]
    assert answers("r1v-export run bundle --target py", 4) == ["plain,pytorch"]
    assert answers("r1v-export verify ou", 2) == ["file,ou"]


def in_shell(command: list[str], folder: Path) -> list[str]:
    """The lines that a shell prints that has `r1v-export` in its path, and this folder as its home."""
    program = folder / "r1v-export"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m r1v_export.cli.main "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash_takes_the_script_and_completes(tmp_path: Path) -> None:
    lines = (
        'eval "$(r1v-export completion bash)"',
        "complete -p r1v-export",
        "COMP_WORDS=(r1v-export deploy tri) COMP_CWORD=2",
        "_r1v_export_completion r1v-export",
        'echo "${COMPREPLY[@]}"',
    )
    printed = in_shell(["bash", "--norc", "-ec", "\n".join(lines)], tmp_path)
    assert printed[-2:] == ["complete -o nosort -F _r1v_export_completion r1v-export", "triton"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_the_script_where_no_compinit_ran(tmp_path: Path) -> None:
    lines = 'eval "$(r1v-export completion zsh)"\nprint -r -- "$_comps[r1v-export]"'
    assert in_shell(["zsh", "-f", "-ec", lines], tmp_path) == ["_r1v_export_completion"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_takes_the_script_as_the_help_says(tmp_path: Path) -> None:
    lines = "r1v-export completion fish | source; complete -C 'r1v-export me'"
    assert in_shell(["fish", "-c", lines], tmp_path) == ["merge-lora\tMerge a LoRA adapter into its weights."]


def test_the_script_of_zsh_turns_completion_on_before_it_needs_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef r1v-export\n")
    assert 0 < script.find("autoload -Uz compinit && compinit") < script.find("compdef _r1v_export_completion")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_of_their_own(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", shell]) == 0
    assert f"{VARIABLE}={shell}_complete" in capsys.readouterr().out
