"""Streams that are closed, full, gone or in ASCII: no traceback, a sensible exit code, JSON that is JSON."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from r1v_export.cli.streams import json_text

OK = "verify $BUNDLE --format json"
FAILING = "verify nowhere --format json"
FAILING_TEXT = "verify nowhere"


Shell = Callable[[str], "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def in_shell(tmp_path: Path, tiny_built: Path) -> Shell:
    """Runs a line of bash in an empty folder; `$R` is the program, `$BUNDLE` a bundle."""
    program = f"{sys.executable} -m r1v_export.cli.main"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "R": program, "BUNDLE": str(tiny_built)}
    return lambda line: subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, timeout=120
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"$R {OK} >&-", 0),
        (f"$R {OK} 2>&-", 0),
        (f"$R {OK} <&- >&- 2>&-", 0),
        (f"$R {FAILING} >&-", 1),
        (f"$R {FAILING_TEXT} 2>&-", 1),
        (f"$R {FAILING_TEXT} <&- >&- 2>&-", 1),
        (f"$R {OK} 2>/dev/full", 0),
        (f"$R {FAILING_TEXT} 2>/dev/full", 1),
        ("$R --help >&-", 0),
        ("$R run nowhere - <&-", 2),
    ],
)
def test_closed_streams_and_a_full_stderr_change_no_exit_code(
    line: str, code: int, in_shell: Shell, tmp_path: Path
) -> None:
    done = in_shell(line)
    assert done.returncode == code
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"Exception ignored" not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", [OK, "--help", "recipes list"])
def test_output_to_a_full_disk_exits_with_4(line: str, in_shell: Shell) -> None:
    done = in_shell(f"$R {line} >/dev/full")
    assert done.returncode == 4
    assert done.stderr.startswith(b"error: The disk is full.\n")
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_an_error_whose_json_cannot_be_written_is_printed_on_stderr(in_shell: Shell) -> None:
    done = in_shell(f"$R {FAILING} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: This is not a bundle.")
    assert b"Exception ignored" not in done.stderr


def test_a_reader_that_goes_away_ends_the_command_quietly(in_shell: Shell) -> None:
    done = in_shell(f"($R {OK}; echo $? >&2) | true")
    assert done.stderr == b"141\n"


@pytest.mark.parametrize(
    "environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}]
)
@pytest.mark.parametrize("name", [b"\xff\xfe", "中\U0001f642".encode(), b"\x1b[31mred\n"], ids=repr)
def test_errors_about_any_name_are_json_in_any_encoding(
    name: bytes, environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "r1v_export.cli.main", "verify", name, "--format", "json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (1, b"")
    error = json.loads(done.stdout)
    assert error["what"] == "This is not a bundle."
    assert error["where"].isprintable()


def test_a_log_that_cannot_be_written_ends_the_command(in_shell: Shell) -> None:
    done = in_shell("$R verify nowhere --log-file /dev/full -vv")
    assert done.returncode in (1, 4)
    assert b"Traceback" not in done.stderr
    assert b"Logging error" not in done.stderr


def test_a_number_that_json_lacks_is_printed_as_its_name() -> None:
    text = json_text({"snr_db": math.inf, "rows": [(-math.inf, 1.5), math.nan]})
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert parsed == {"snr_db": "Infinity", "rows": [["-Infinity", 1.5], "NaN"]}
