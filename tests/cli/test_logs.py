"""The log: nothing without -v, text on stderr with it, JSON lines in a file, and never in the way of progress."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import onnx_ir as ir
import pytest
from onnx import helper

from r1v_export.cli import main
from r1v_export.cli.answers import stream
from r1v_export.cli.logs import (
    LIBRARIES,
    PACKAGE,
    JsonFormatter,
    LogFileHandler,
    TerminalHandler,
    TextFormatter,
    _handlers,
    logging_options,
    say,
)
from r1v_export.cli.output import common_options, shown_progress
from r1v_export.errors import UsageError
from r1v_export.exporters.passes.run_passes import run_passes
from r1v_export.runner.answer import Answer, Timings, TokenEvent
from r1v_export.targets.onnxruntime.runtime.session import open_session


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command `speak` that logs a note and a detail."""

    @click.command()
    @logging_options
    def speak() -> None:
        logging.getLogger("r1v_export.stage").info("wrote %d files", 3)
        logging.getLogger("r1v_export.stage").debug("wrote a.onnx")
        click.echo("result")

    monkeypatch.setattr(main, "cli", click.Group(commands={"speak": speak}))


def test_without_v_nothing_is_logged(speaking: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["speak"]) == 0
    assert capfd.readouterr() == ("result\n", "")


@pytest.mark.parametrize(("option", "details"), [("-v", False), ("-vv", True), ("--verbose", False)])
def test_v_logs_to_stderr(speaking: None, capfd: pytest.CaptureFixture[str], option: str, details: bool) -> None:
    assert main.run(["speak", option]) == 0
    out, err = capfd.readouterr()
    assert out == "result\n"
    assert "INFO r1v_export.stage: wrote 3 files" in err
    assert ("wrote a.onnx" in err) == details


def test_a_log_file_holds_json_lines_and_is_appended_to(
    speaking: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "build.log"
    for _ in range(2):
        assert main.run(["speak", "--log-file", str(file), "--log-format", "json"]) == 0
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["level"], r["logger"], r["message"]) for r in records] == [
        ("info", "r1v_export.stage", "wrote 3 files")
    ] * 2
    assert capfd.readouterr().err == ""


def test_a_log_file_that_cannot_be_written_is_refused(
    speaking: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["speak", "--log-file", str(tmp_path / "no" / "folder")]) == 2
    assert "The log file cannot be written." in capfd.readouterr().err


def test_nothing_is_left_behind(speaking: None, tmp_path: Path) -> None:
    before = list(PACKAGE.handlers), PACKAGE.level
    main.run(["speak", "-v", "--log-file", str(tmp_path / "log")])
    assert (PACKAGE.handlers, PACKAGE.level) == before


def test_on_a_terminal_a_record_replaces_the_line_that_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    TerminalHandler().emit(logging.LogRecord("r1v_export", logging.INFO, "", 0, "note", (), None))
    assert terminal.getvalue() == "\r\x1b[Knote\n"


def test_on_a_terminal_a_record_leaves_the_answer_that_stands_on_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    handler = TerminalHandler()

    def events() -> Iterator[TokenEvent]:
        yield TokenEvent(0, 1, "", "two squares")
        for _ in range(2):
            handler.emit(logging.LogRecord("r1v_export", logging.INFO, "", 0, "note", (), None))
        yield TokenEvent(0, 2, "", ".", Answer("", "two squares.", True, (), "stop", 0, 0, Timings()))

    stream(events(), answer_only=False)
    assert terminal.getvalue() == "two squares\nnote\n\r\x1b[Knote\n.\n"


def test_a_name_from_outside_cannot_command_the_terminal_or_begin_a_line() -> None:
    record = logging.makeLogRecord({"msg": "%(file)s", "args": {"file": "a\x1b[2J\nINFO b"}})
    line = TextFormatter().format(record)
    assert line.endswith("a\\x1b[2J\\nINFO b")
    assert line.isprintable()


def test_a_pass_logs_what_it_changed(caplog: pytest.LogCaptureFixture) -> None:
    class DropFirst(ir.passes.InPlacePass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            model.graph.remove(model.graph[0])
            return ir.passes.PassResult(model, modified=True)

    nodes = [ir.node("Relu", []), ir.node("Exp", [])]
    model = ir.Model(ir.Graph([], [], nodes=nodes, name="vision"), ir_version=10)
    with caplog.at_level(logging.INFO, "r1v_export"):
        run_passes(model, DropFirst())
    assert caplog.messages == ["vision, DropFirst: -1 Relu; 2 -> 1 node, 0 -> 0 initializers"]


def test_json_lines_carry_the_fields_of_an_event() -> None:
    record = logging.makeLogRecord({"name": "r1v_export.stage", "levelno": logging.INFO, "levelname": "INFO"})
    record.msg, record.args = "%(stage)s: %(files)d files", {"stage": "vision", "files": 2}
    vars(record).update(stage="vision", files=2, kl=float("nan"), level="mine", _ray_timestamp_ns=1)
    line = json.loads(JsonFormatter().format(record), parse_constant=lambda name: pytest.fail(name))
    assert line.pop("time")
    assert line == {
        "level": "info",
        "logger": "r1v_export.stage",
        "message": "vision: 2 files",
        "stage": "vision",
        "files": 2,
        "kl": "nan",
    }


def test_a_log_file_takes_names_that_are_no_text(
    tmp_path: Path, speaking: None, capfd: pytest.CaptureFixture[str]
) -> None:
    record = logging.makeLogRecord({"name": "r1v_export", "msg": "opened \udcff.png"})
    file = tmp_path / "log"
    (handler,) = _handlers(0, file, "json")
    handler.emit(record)
    handler.close()
    assert json.loads(file.read_text())["message"] == "opened \udcff.png"
    assert capfd.readouterr().err == ""


def test_what_libraries_warn_of_is_in_the_log_and_not_on_stderr(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @logging_options
    def speak() -> None:
        warnings.warn("Corrupt EXIF data.", stacklevel=1)

    monkeypatch.setattr(main, "cli", click.Group(commands={"speak": speak}))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main.run(["speak"]) == 0
        assert capfd.readouterr() == ("", "")
        assert main.run(["speak", "--log-file", str(tmp_path / "log"), "--log-format", "json"]) == 0
    assert capfd.readouterr() == ("", "")
    (record,) = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (record["level"], record["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: Corrupt EXIF data." in record["message"]


def test_with_json_on_stderr_every_line_is_json_while_onnx_runtime_opens_a_session(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime logs to the file descriptor by itself, as text, and its sessions are opened by the command."""
    x, y = helper.make_tensor_value_info("x", 1, [1]), helper.make_tensor_value_info("y", 1, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

    @click.command()
    @common_options
    def ask(format_: str) -> None:
        progress = shown_progress(format_, 1)
        progress.note("warning: something")
        with progress.stage("open"):
            open_session(content, Path.cwd(), "cpu")
        say("serving")
        raise UsageError("No such thing.", fix="another")

    monkeypatch.setattr(main, "cli", click.Group(commands={"ask": ask}))
    assert main.run(["ask", "-vv"]) == 2
    assert "onnxruntime:" in capfd.readouterr().err  # so it does log
    assert main.run(["ask", "-vv", "--log-format", "json"]) == 2
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    said = {event["message"]: event["level"] for event in events}
    assert (said["something"], said["serving"], said["No such thing."]) == ("warning", "info", "error")
    assert events[-1]["error"]["fix"] == "another"
    assert any("ONNX Runtime" in message for message in said)


def test_onnx_runtime_s_own_lines_are_not_on_stderr_when_the_log_is_a_file(
    speaking: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    severities = []
    monkeypatch.setattr(LogFileHandler, "emit", lambda *_: severities.append(LIBRARIES.isEnabledFor(logging.WARNING)))
    assert main.run(["speak", "--log-file", str(tmp_path / "log")]) == 0
    assert severities
    assert not any(severities)
    assert LIBRARIES.level == logging.NOTSET


def test_what_is_said_to_people_is_broken_at_spaces_where_a_terminal_is_narrower(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    say("serving fp32 at http://127.0.0.1:8174 (page), http://127.0.0.1:8174/v1\n(once)")
    assert capsys.readouterr().err.splitlines() == [
        "serving fp32 at http://127.0.0.1:8174",
        "  (page), http://127.0.0.1:8174/v1",
        "(once)",
    ]


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_log_format_without_a_log_is_refused(
    format_: str, speaking: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["speak", "--log-format", format_]) == 2
    said = capsys.readouterr().err
    assert "An option has no effect without a log." in said
    assert "--log-file FILE" in said
