"""Progress: one line per stage where nobody watches, a redrawn line with the time left on a terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios
import threading

import pytest

from r1v_export import progress
from r1v_export.errors import UsageError
from r1v_export.progress import Progress, Task, duration, size, subrange, terminal_width


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands at its only element."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_gets_one_plain_line_per_stage(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = Progress(2, stream)
    with shown.stage("one") as task:
        for done in range(10):
            clock[0] += 1
            task.report(done + 1, 10)
    shown.skip("two", "done before")
    assert stream.getvalue() == "[1/2] one: 10 s\n[2/2] two: done before\n"


def test_a_note_stays_below_its_stage(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = Progress(1, stream)
    with shown.stage("one"):
        clock[0] += 1
    shown.note("warning: keys have outliers")
    assert stream.getvalue() == "[1/1] one: 1.0 s\n  warning: keys have outliers\n"


def test_a_terminal_gets_a_note_in_lines_of_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    Progress(1, stream).note("warning: keys have outliers")
    assert stream.getvalue() == "\r\x1b[K  warning: keys have\n    outliers\n"


def test_the_width_is_that_of_the_terminal_that_a_stream_goes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    other, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 61, 0, 0))
    with os.fdopen(terminal, "w") as stream:
        assert terminal_width(stream) == 61
    os.close(other)
    assert terminal_width(io.StringIO()) == 80


def test_a_hundredth_of_the_work_is_needed_to_say_how_long_the_rest_takes(clock: list[float]) -> None:
    stream = Terminal()
    with Progress(1, stream).stage("one") as task:
        clock[0] += 4
        task.report(1, 10_000)
        assert "left" not in stream.getvalue()
        clock[0] += 36
        task.report(1, 10_000)
    assert "0 %, 111 h 06 min left" in stream.getvalue()


def test_no_time_left_is_estimated_from_the_first_moments_of_a_stage(clock: list[float]) -> None:
    """As of a graph that is traced for seconds and then written at once."""
    shown = Progress(2, Terminal())
    shown.expected_s = {"two": 60.0}
    with shown.stage("one") as task:
        clock[0] += 3
        task.report(5, 100)
        assert task.line() == "[1/2] one: 5 %"
        clock[0] += 8
        assert task.line() == "[1/2] one: 5 %, 3 min 29 s left, 4 min 29 s with all stages"
    with shown.stage("two") as task:
        clock[0] += 0.5
        task.report(1, 2)
        assert task.line() == "[2/2] two: 50 %"
        task.report(1, 1)
        assert task.line() == "[2/2] two: 99 %, almost done"


def test_a_terminal_sees_how_far_and_how_long_still(clock: list[float]) -> None:
    stream = Terminal()
    with Progress(1, stream).stage("one") as task:
        clock[0] += 30
        task.report(100, 400)
    assert "[1/1] one: 25 %, 1 min 30 s left" in stream.getvalue()


def test_on_a_terminal_the_stages_after_it_count_too(clock: list[float]) -> None:
    stream = Terminal()
    shown = Progress(2, stream)
    shown.expected_s = {"one": 500.0, "two": 600.0}
    with shown.stage("one") as task:
        clock[0] += 30
        task.report(1, 4)
    assert "[1/2] one: 25 %, 1 min 30 s left, 11 min 30 s with all stages" in stream.getvalue()
    with shown.stage("two") as task:
        clock[0] += 30
        task.report(1, 4)
        assert stream.getvalue().endswith("[2/2] two: 25 %, 1 min 30 s left")


def test_a_line_without_a_terminal_names_the_rate(clock: list[float]) -> None:
    shown = Progress(2, io.StringIO())
    shown.expected_s = {"two": 60.0}
    with shown.stage("one") as task:
        clock[0] += 40
        assert task.line() == "[1/2] one: began 40 s ago"
        clock[0] += 20
        task.report(1, 4, "layer 3")
        assert task.line() == "[1/2] one: 25 %, 25 %/min, 3 min 00 s left, 4 min 00 s with all stages (layer 3)"
    with shown.stage("two") as task:
        clock[0] += 6
        task.report(1, 2)
        assert task.line() == "[2/2] two: 50 %, 500 %/min, 6.0 s left"


class SignaledStream(io.StringIO):
    """Tells when a number of lines has been written."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.lines, self.complete = lines, threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.getvalue().count("\n") >= self.lines:
            self.complete.set()
        return count


def test_a_pipe_hears_of_a_long_stage_that_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_HEARTBEAT_S", 0.01)
    stream = SignaledStream(2)
    with Progress(1, stream).stage("one") as task:
        task.report(1, 2, "compiling")
        assert stream.complete.wait(60)
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("[1/1] one: 50 %, ") and line.endswith("%/min (compiling)") for line in lines[:-1])


def test_a_step_that_has_just_begun_is_seen_at_once_and_stays_until_the_next(clock: list[float]) -> None:
    stream = Terminal()
    with Progress(1, stream).stage("one") as task:
        task.report(1, 4, "reading")
        assert stream.getvalue().endswith("(reading)")
        clock[0] += 3
        task.report(2, 4)
        assert stream.getvalue().endswith("50 %, 3.0 s left (reading)")
        task.report(2, 4, "compiling")
        assert stream.getvalue().endswith("50 %, 3.0 s left (compiling)")
    assert stream.getvalue().endswith("[1/1] one: 3.0 s\n")


def test_a_redrawn_line_is_cut_to_the_terminals_width(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    with Progress(1, stream).stage("one") as task:
        task.report(1, 2, "language_model.model.layers.0.self_attn")
    lines = [line.removeprefix("\x1b[K") for line in stream.getvalue().rstrip("\n").split("\r")]
    assert max(map(len, lines)) == 29


def test_a_step_that_is_tried_again_takes_nothing_back(clock: list[float]) -> None:
    with Progress(1, Terminal()).stage("one") as task:
        task.report(3, 4)
        task.report(1, 4)
        assert task.fraction == 0.75


def test_pieces_of_a_whole_report_one_after_the_other() -> None:
    reported: list[tuple[float, float, str]] = []
    pieces = [("vision", 0.0, 0.25), ("decoder", 0.25, 1.0)]
    for name, begin, end in pieces:
        report = subrange(lambda done, total, status="": reported.append((done, total, status)), begin, end, name)
        report(1, 2, "compiling")
        report(2, 2)
        report(5, 0)
    assert reported == [
        (0.125, 1.0, "vision: compiling"),
        (0.25, 1.0, ""),
        (0.0, 1.0, ""),
        (0.625, 1.0, "decoder: compiling"),
        (1.0, 1.0, ""),
        (0.25, 1.0, ""),
    ]


def test_unknown_work_shows_no_percentage(clock: list[float]) -> None:
    stream = Terminal()
    with Progress(1, stream).stage("one") as task:
        clock[0] += 1
        task.report(1, 0)
    assert "%" not in stream.getvalue()


def test_a_stage_that_fails_says_when(clock: list[float]) -> None:
    stream = io.StringIO()

    def fail() -> None:
        with Progress(1, stream).stage("one"):
            clock[0] += 2
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert stream.getvalue() == "[1/1] one: stopped after 2.0 s\n"


def test_a_stage_that_still_runs_is_never_shown_as_done(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(1, stream).stage("one") as task:
        clock[0] += 30
        task.report(999, 1000)
        assert ": 99 %," in task.line()
        task.report(1, 1)
        assert ": 99 %," in task.line()
        assert "almost done" in task.line()
        assert "0.0 s left" not in task.line()


def test_an_interrupt_while_a_stage_is_first_drawn_says_that_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()

    def interrupted(_task: Task) -> None:
        raise KeyboardInterrupt

    def run() -> None:
        with Progress(1, stream).stage("one"):
            pass

    monkeypatch.setattr(Task, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert "[1/1] one: stopped after" in stream.getvalue()


def test_a_usage_error_leaves_no_line_of_a_stage_that_did_nothing() -> None:
    for stream, shown in ((io.StringIO(), ""), (Terminal(), "\r\x1b[K[1/1] one ...\r\x1b[K")):

        def fail(progress: Progress) -> None:
            with progress.stage("one"):
                raise UsageError("wrong option")

        with pytest.raises(UsageError):
            fail(Progress(1, stream))
        assert stream.getvalue() == shown


def test_quiet_is_silent_also_on_a_terminal() -> None:
    stream = Terminal()
    with Progress(1, stream, quiet=True).stage("one") as task:
        task.report(1, 1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.8, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_900_000, "9.9 MB"),
        (76_780_000_000, "76.8 GB"),
        (2e12, "2.0 TB"),
    ],
)
def test_sizes_are_decimal(size_bytes: float, text: str) -> None:
    assert size(size_bytes) == text
