"""The program `r1v` against `r1v-export`: the same bundle, the same questions, the same output byte for byte."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest
from click.testing import CliRunner

from r1v_export.cli.main import cli
from r1v_export.nano.dataset import samples
from tests.documents import PROJECT, blocks_of, run
from tests.engines import programs
from tests.targets.onnxruntime.test_library import ONNXRUNTIME_S_OWN

IMAGES = programs.REPOSITORY / "examples/images"
COUNT, CHART, SHAPE = IMAGES / "06-count.png", IMAGES / "05-chart.png", IMAGES / "02-shape.png"


def python_output(*arguments: object) -> str:
    """What the Python command prints, with images encoded as libr1v does."""
    images = ("--vision-target", "onnxruntime") if arguments[0] == "run" else ()
    result = CliRunner().invoke(cli, [str(word) for word in (*arguments, *images)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of other formats and shapes than the examples: some have several tiles."""
    folder = tmp_path_factory.mktemp("photos")
    for index, sample in enumerate(samples("eval", 4)):
        wide = sample.image.resize((sample.image.width * (1 + index % 3), sample.image.height))
        wide.save(folder / f"{index}.jpg", quality=90)
        wide.save(folder / f"{index}.webp", lossless=True)
    return folder


@pytest.mark.slow(60)
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_answers_are_those_of_python_byte_for_byte(r1v, nano_bundle, int4_bundle, photos, precision):
    bundle = nano_bundle if precision == "fp32" else int4_bundle
    asked = [
        ["--image", COUNT, "How many objects do you see?"],
        ["--image", CHART, "--image", SHAPE, "What is in <image> and in <image>?"],
        ["--image", COUNT, "--image", CHART, "--image", COUNT, "Which image has bars?"],
        ["--image", photos / "1.jpg", "What do you see?"],
        ["--image", photos / "2.webp", "--no-think", "What do you see?"],
        ["--image", photos / "3.jpg", "--max-new-tokens", "7", "What do you see?"],
        ["--image", COUNT, "--stop", "makes", "--stop-in-reasoning", "How many objects do you see?"],
        ["--image", COUNT, "--max-reasoning-tokens", "6", "How many objects do you see?"],
        ["--image", COUNT, "--answer-only", "How many objects are there?"],
        ["--image", COUNT, "--temperature", "0.9", "--top-p", "0.9", "--top-k", "40", "--seed", "7", "What is this?"],
        ["--image", COUNT, "--repetition-penalty", "1.3", "Describe the image in ünïcödé \U0001f600."],
        ["Hello, who are you?"],
    ]
    for arguments in asked:
        ran = r1v("run", bundle, *arguments)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == python_output("run", bundle, *arguments)


def test_a_conversation_is_that_of_python(r1v, nano_bundle):
    lines = f"How many objects are there?\n/image {CHART}\nAnd here?\nThank you.\n"
    ran = r1v("run", nano_bundle, "--chat", "--image", COUNT, stdin=lines)
    arguments = [str(word) for word in ("run", nano_bundle, "--chat", "--image", COUNT)]
    expected = CliRunner().invoke(cli, arguments, input=lines, catch_exceptions=False)
    assert (ran.returncode, ran.stdout) == (0, expected.stdout)


def test_stdin_is_an_image_or_a_question(r1v, nano_bundle):
    asked = r1v("run", nano_bundle, "--image", COUNT, "-", stdin="How many objects do you see?\n")
    assert asked.stdout == python_output("run", nano_bundle, "--image", COUNT, "How many objects do you see?")
    assert r1v("run", nano_bundle, "--image", "-", "-").returncode == 2


def without_times(printed):
    return re.sub(r'("\w+_ms": )[\d.]+', r"\1TIME", printed)


def test_json_is_that_of_python_byte_for_byte_but_for_times(r1v, nano_bundle):
    asked = [
        ["--image", COUNT, "How many objects do you see?"],
        ["--image", COUNT, "--answer-only", "--no-think", "Describe in ünïcödé \U0001f600."],
        [
            "--temperature",
            "0.7",
            "--seed",
            "9",
            "--min-p",
            "1e-05",
            "--max-new-tokens",
            "20",
            "--stop",
            'a"b\\\t',
            "Hi",
        ],
    ]
    for arguments in asked:
        ran = r1v("run", nano_bundle, "--format", "json", *arguments)
        assert ran.returncode == 0, ran.stderr
        assert without_times(ran.stdout) == without_times(
            python_output("run", nano_bundle, "--format", "json", *arguments)
        )
    lines = "How many objects are there?\nThank you.\n"
    arguments = [str(word) for word in ("run", nano_bundle, "--chat", "--format", "json", "--image", COUNT)]
    expected = CliRunner().invoke(cli, arguments, input=lines, catch_exceptions=False)
    assert without_times(r1v(*arguments, stdin=lines).stdout) == without_times(expected.stdout)


def test_log_probabilities_are_printed_in_json(r1v, nano_bundle):
    asked = (
        "run",
        nano_bundle,
        "--format",
        "json",
        "--image",
        COUNT,
        "--logprobs",
        "3",
        "How many objects do you see?",
    )
    # Both a token at a time: libr1v has no drafts, and logits of several tokens a step are rounded differently.
    found, expected = json.loads(r1v(*asked).stdout), json.loads(python_output(*asked, "--draft-tokens", "0"))
    found_tokens, tokens = found.pop("logprobs"), expected.pop("logprobs")
    assert found | {"timings": None} == expected | {"timings": None}
    assert len(found_tokens) == len(tokens) == len(found["token_ids"])
    for (logprob, top), (expected_logprob, expected_top) in zip(found_tokens, tokens, strict=True):
        assert [id_ for id_, _ in top] == [id_ for id_, _ in expected_top]
        assert [logprob, *(each for _, each in top)] == pytest.approx(
            [expected_logprob, *(each for _, each in expected_top)], abs=1e-5
        )
    assert r1v("run", nano_bundle, "--logprobs", "3", "Hi").returncode == 2


def test_an_error_is_json_where_json_is_asked_for(r1v, tiny_bundle, tmp_path):
    ran = r1v("run", tiny_bundle, "--format", "json", "--image", tmp_path / "missing.png", "Hello")
    printed = json.loads(ran.stdout)
    assert (ran.returncode, ran.stderr.partition("\n")[2]) == (1, "")
    result = CliRunner().invoke(cli, ["run", str(tiny_bundle), "--image", str(tmp_path / "missing.png"), "Hello"])
    assert set(printed) == set(result.exception.as_dict())
    assert (printed["error"], printed["exit_code"]) == ("InputError", 1)
    assert str(tmp_path / "missing.png") in printed["where"]


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:;BASE64,", "data:image/png,"])
def test_an_image_is_a_data_url(r1v, nano_bundle, head):
    content = COUNT.read_bytes()
    encoded = base64.b64encode(content).decode() if "base64" in head.lower() else quote_from_bytes(content)
    asked = ("--max-new-tokens", "9", "How many objects do you see?")
    ran = r1v("run", nano_bundle, "--image", head + encoded, *asked)
    assert ran.stdout == python_output("run", nano_bundle, "--image", COUNT, *asked), ran.stderr


@pytest.mark.parametrize(
    "url", ["data:image/png;base64", "data:;base64,iVBO*", "data:;base64,iVBOR", "data:;base64,a===", "data:,"]
)
def test_a_malformed_data_url_is_an_error_as_in_python(r1v, tiny_bundle, url):
    ran = r1v("run", tiny_bundle, "--image", url, "Hello")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert CliRunner().invoke(cli, ["run", str(tiny_bundle), "--image", url, "Hello"]).exit_code == 1


def test_a_bundle_is_verified(r1v, tiny_bundle):
    assert r1v("verify", tiny_bundle).stdout.startswith("ok: ")
    weights = tiny_bundle / "graphs/decoder.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    ran = r1v("verify", tiny_bundle)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: graphs/decoder.data is altered.")
    assert r1v("run", tiny_bundle, "--verify", "Hello").stderr == ran.stderr


@pytest.mark.parametrize(
    "file", ["pipeline.json", "contract.json", "tokenizer.json", "engines/onnxruntime/decoder.onnx"]
)
def test_a_file_that_is_missing_or_altered_is_named(r1v, tiny_bundle, file):
    path = tiny_bundle / file
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert f"{file} is altered." in r1v("run", tiny_bundle, "Hello").stderr
    path.unlink()
    assert f"{file} is missing." in r1v("run", tiny_bundle, "Hello").stderr


def test_what_cannot_be_is_an_error_with_its_exit_code(r1v, tiny_bundle, tmp_path):
    assert r1v("run", tmp_path, "Hello").stderr.startswith("error: This is not a bundle.")
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    cases = {
        ("run", tiny_bundle): 2,
        ("run", tiny_bundle, "--target", "tensorrt", "Hello"): 1,
        ("run", tiny_bundle, "--device", "cuda", "Hello"): 4,
        ("run", tiny_bundle, "--device", "tpu", "Hello"): 2,
        ("run", tiny_bundle, "--onnxruntime", tmp_path, "Hello"): 4,
        ("run", tiny_bundle, "--image", tmp_path / "no.png", "Hello"): 1,
        ("run", tiny_bundle, "--image", "http://example.com/a.png", "Hello"): 2,
        ("run", tiny_bundle, "--greedy", "--temperature", "1", "Hello"): 2,
        ("run", tiny_bundle, "--top-p", "7", "Hello"): 2,
        ("run", tiny_bundle, "--no-such-option", "Hello"): 2,
        ("run", tiny_bundle, "x" * 100_000): 1,
    }
    for arguments, code in cases.items():
        ran = r1v(*arguments)
        assert (ran.returncode, ran.stdout) == (code, ""), (arguments[:3], ran.stderr)
        assert ran.stderr


def test_bench_measures_whole_answers(r1v, tiny_bundle):
    """Each run computes image and prompt anew, though the engine keeps both for who asks again."""
    ran = r1v("bench", tiny_bundle, "--image", COUNT, "--tokens", "4", "--runs", "3")
    assert ran.returncode == 0, ran.stderr
    stages = {words[0]: words[1] for line in ran.stdout.splitlines() if len(words := line.split()) == 2}
    assert min(float(stages[name]) for name in ("vision", "prefill", "decode")) > 0
    assert "tokens/s" in ran.stdout


def test_a_link_to_a_bundle_is_opened(r1v, tiny_bundle, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tiny_bundle)
    assert r1v("run", link, "--max-new-tokens", "2", "Hello").returncode == 0
    shutil.rmtree(tiny_bundle)
    assert "no such folder" in r1v("run", link, "Hello").stderr


def test_files_behind_links_are_read_where_they_lie(r1v, tiny_bundle, tmp_path):
    asked = ("--image", COUNT, "--max-new-tokens", "5", "What do you see?")
    expected = r1v("run", tiny_bundle, *asked).stdout
    linked = tmp_path / "folders"
    linked.mkdir()
    for path in tiny_bundle.iterdir():
        (linked / path.name).symlink_to(path)
    assert r1v("run", linked, *asked).stdout == expected
    blobs = tmp_path / "elsewhere" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in tiny_bundle.rglob("*") if path.is_file())):
        path.rename(blobs / f"{number:x}")
        path.symlink_to(os.path.relpath(blobs / f"{number:x}", path.parent))
    assert r1v("run", tiny_bundle, "--verify", *asked).stdout == expected
    weights = tiny_bundle / "graphs/decoder.data"
    weights.unlink()
    weights.symlink_to("/dev/zero")
    ran = r1v("run", tiny_bundle, *asked)
    assert ran.returncode == 1
    assert f"A file cannot be read.\n  where:    {weights}" in ran.stderr


def test_the_readme_s_commands_answer_from_the_build_that_they_make(engines, nano_bundle, tmp_path):
    (block,) = [block for block in blocks_of(PROJECT / "README.md") if "engines/cli/r1v" in block.code]
    building, *using = block.code.splitlines(keepends=True)
    assert "cmake -S . -B build -G Ninja && ninja -C build" in building  # as the fixture does
    (tmp_path / "out").mkdir()
    links = {"build": engines, "examples": PROJECT / "examples", "out/demo": nano_bundle, ".venv": Path(sys.prefix)}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    printed = run(block._replace(code="".join(using)), tmp_path)
    assert printed == python_output("run", nano_bundle, "--image", COUNT, "How many objects do you see?")


def test_onnxruntime_reports_nothing(r1v, nano_bundle, tmp_path, monkeypatch):
    for name in ONNXRUNTIME_S_OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert r1v("run", nano_bundle, "How many?", "--greedy", "--max-new-tokens", 1).returncode == 0
    assert not [*tmp_path.iterdir()]
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert r1v("run", nano_bundle, "How many?", "--greedy", "--max-new-tokens", 1).returncode == 0
    assert [*tmp_path.rglob("onnxruntime.db*")], "what the case above relies on: left alone, it keeps a database here"
