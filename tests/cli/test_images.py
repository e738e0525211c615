"""Images on the command line: standard input, URLs, places in the text, videos."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from r1v_export.cli import main

IMAGES = Path(__file__).parents[2] / "examples" / "images"
CHART, SHAPE = IMAGES / "05-chart.png", IMAGES / "02-shape.png"
HOW_TALL = "How tall is the green bar?"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(nano_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Ask r1v-nano, with bytes on stdin: exit code, answer, stderr."""

    def ask(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main.run(["run", str(nano_bundle), "--answer-only", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out.strip(), printed.err

    return ask


def test_an_image_comes_from_standard_input_or_a_data_url(run: Run) -> None:
    url = "data:image/png;base64," + base64.b64encode(CHART.read_bytes()).decode()
    assert run("--image", "-", HOW_TALL, stdin=CHART.read_bytes())[:2] == (0, "5")
    assert run("--image", url, HOW_TALL)[:2] == (0, "5")


def test_nothing_is_fetched_unless_allowed(run: Run) -> None:
    code, _, err = run("--image", "http://127.0.0.1:1/a.png", HOW_TALL)
    assert code == 2
    assert "--allow-url" in err
    code, _, err = run("--allow-url", "--image", "http://127.0.0.1:1/a.png", HOW_TALL)
    assert code == 1
    assert "cannot be fetched" in err


@pytest.mark.parametrize(
    "arguments", [["--image", "-", "-"], ["--image", "-", "--image", "-", "?"], ["--chat", "--image", "-"]]
)
def test_standard_input_is_read_once(run: Run, arguments: list[str]) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert "can be read once" in err


@pytest.mark.parametrize("command", ["run", "check", "bench"])
def test_an_image_is_not_waited_for_at_a_terminal(
    command: str, nano_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CHART.read_bytes())))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    question = [HOW_TALL] if command == "run" else ["--question", HOW_TALL]
    assert main.run([command, str(nano_bundle), "--image", "-", *question]) == 2
    said = capsys.readouterr().err
    assert "An image is not read from a terminal" in said
    assert "--image FILE" in said


def test_a_question_that_is_typed_is_announced(
    nano_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(HOW_TALL.encode())))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main.run(["run", str(nano_bundle), "--image", str(CHART), "-", "--answer-only"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == "5"
    assert printed.err.startswith("the question is read from the terminal; end it with Ctrl-D")


def test_several_images_stand_where_the_text_says(run: Run) -> None:
    two = ["--image", CHART, "--image", SHAPE]
    assert run(*two, f"Of <image> and <image>: {HOW_TALL}")[:2] == (0, "5")
    code, _, err = run(*two, f"Of <image>: {HOW_TALL}")
    assert code == 1
    assert "placeholders do not match" in err


def test_frames_of_an_animation_are_asked_about(run: Run, tmp_path: Path) -> None:
    chart = Image.open(CHART).convert("RGB")
    shape = Image.open(SHAPE).convert("RGB").resize(chart.size)
    chart.save(tmp_path / "video.png", save_all=True, append_images=[shape], duration=100)
    assert run("--video", tmp_path / "video.png", "--frames", "2", HOW_TALL)[:2] == (0, "5")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--video", "a.gif", "--image", "a.png", "?"], "exclude each other"),
        (["--video", "a.gif", "--chat"], "exclude each other"),
        (["--frames", "2", "?"], "--frames is for videos"),
    ],
)
def test_options_about_videos_that_exclude_each_other(run: Run, arguments: list[str], what: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert what in err


@pytest.mark.parametrize(
    ("options", "what"),
    [(("--image", ""), "The name of an image is empty"), (("--batch", 100_000_000), "not in the range 1 to 1024")],
)
def test_bench_refuses_an_image_without_a_name_and_a_batch_of_no_machine(
    nano_bundle: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], what: str
) -> None:
    assert main.run(["bench", str(nano_bundle), "--runs", "1", "--tokens", "2", *map(str, options)]) == 2
    assert what in capsys.readouterr().err
