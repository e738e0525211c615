"""Ctrl-C: answered at once, also while a library computes; the process then ends without delay."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import click
import pytest

from r1v_export.cli import interrupt, main
from r1v_export.cli.interrupt import STOPPING, answered_interrupts
from r1v_export.cli.output import common_options


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    """Python's, which a shell's background jobs do not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(work: Callable[[], object]) -> None:
    """What Ctrl-C does a tenth of a second after the work has begun."""
    with answered_interrupts():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        work()


def test_an_interrupt_within_a_library_is_answered_before_it_takes_effect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interrupt, "_PATIENCE_S", 0.05)
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 4_000_000))  # seconds in C
    assert capsys.readouterr().err == f"{STOPPING}\n"


def test_next_to_a_json_log_an_interrupt_is_answered_by_an_event(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @common_options
    def hash_for_seconds(format_: str) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 4_000_000)

    monkeypatch.setattr(interrupt, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(main, "cli", click.Group(commands={"hash": hash_for_seconds}))
    assert main.run(["hash", "-v", "--log-format", "json"]) == 130
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["message"] for event in events] == [STOPPING, "Interrupted."]


def test_an_interrupt_of_python_is_not_announced(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: time.sleep(5))
    time.sleep(2 * interrupt._PATIENCE_S)
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_server_that_takes_interrupts_itself_says_itself_that_it_stops(capsys: pytest.CaptureFixture[str]) -> None:
    came: list[int] = []
    with answered_interrupts():
        own = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
        signal.raise_signal(signal.SIGINT)
        time.sleep(2 * interrupt._PATIENCE_S)
        signal.signal(signal.SIGINT, own)
    assert came == [signal.SIGINT]
    assert capsys.readouterr().err == ""


class Collected:
    pass


def test_an_interrupt_within_a_callback_where_python_ignores_it_is_not_lost() -> None:
    def lose() -> None:
        thing = Collected()
        callbacks.append(weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT)))
        del thing
        reached.append(True)
        time.sleep(5)

    callbacks, reached = list[object](), list[bool]()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), answered_interrupts():
        lose()
    assert reached, "it was ignored first"
    assert time.monotonic() - begun < 5


def test_the_handler_of_a_caller_stays() -> None:
    def own(_number: int, _frame: object) -> None: ...

    before = signal.signal(signal.SIGINT, own)
    try:
        with answered_interrupts():
            assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


SCRIPT = """
import sys, tempfile, threading, time
from r1v_export.cli import main
kept = tempfile.TemporaryDirectory()
print(kept.name, flush=True)
def command(**_):
    threading.Thread(target=time.sleep, args=(60,)).start()
    exec("raise KeyboardInterrupt")
main.cli.main = command
sys.argv = ["r1v-export", "build"]
main.main()
"""


def test_an_interrupted_command_ends_at_once_with_130_and_removes_what_is_temporary() -> None:
    begun = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 130, "not ended by the signal itself, as Python does for one within exec()"
    assert "Interrupted" in ended.stderr
    assert not os.path.exists(ended.stdout.strip())  # noqa: PTH110
    assert time.monotonic() - begun < 50, "a thread that goes on is not waited for"
