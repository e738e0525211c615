"""`run` as people use it: sampling of the checkpoint, stop strings, questions from stdin, conversations."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r1v_export.bundle import read_generation_config, read_spec
from r1v_export.cli import main
from r1v_export.cli.chat import image_command
from r1v_export.errors import UsageError
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.serialized.document import read_document
from r1v_export.serialized.pipeline import PipelineDocument

IMAGES = Path(__file__).parents[2] / "examples" / "images"
CHART = str(IMAGES / "05-chart.png")
GREEN, BLUE = "How tall is the green bar?", "How tall is the blue bar?"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run `run`, with text on stdin: exit code, stdout, stderr."""

    def run(*arguments: str | Path, stdin: str | bytes = "") -> tuple[int, str, str]:
        content = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        code = main.run(["run", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def recommending(nano_bundle: Path, tmp_path: Path):
    """The bundle, by links, with further fields of generation_config.json in its pipeline.json."""

    def recommending(**fields: Any) -> Path:
        folder = tmp_path / "recommending"
        folder.mkdir()
        for path in nano_bundle.iterdir():
            (folder / path.name).symlink_to(path)
        path, tokenizer = folder / "pipeline.json", Tokenizer.from_folder(nano_bundle)
        engines = read_document(PipelineDocument, path).engines
        config = read_generation_config(nano_bundle) | fields
        path.unlink()
        path.write_text(describe_pipeline(read_spec(nano_bundle), tokenizer, config, engines).to_json())
        return folder

    return recommending


def test_a_greedy_question_without_an_image_imports_only_what_answers_it(nano_bundle) -> None:
    code = (
        "import sys; from r1v_export.cli.main import run; code = run(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "run", nano_bundle, "How are you?", "--greedy", "--max-new-tokens", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {*done.stdout.splitlines()[-1].split()}
    assert {"numpy", "onnxruntime", "tokenizers"} <= imported
    assert not imported & {"PIL", "urllib.request", "numpy.random", "torch", "onnx", "yaml", "jinja2"}


def test_the_checkpoint_s_own_sampling_is_used_and_printed(recommending, run) -> None:
    bundle = recommending(do_sample=True, temperature=5.0, top_k=40, num_beams=2)
    _, out, err = run(bundle, "--image", CHART, GREEN, "--max-new-tokens", 12, "--format", "json")
    answer = json.loads(out)
    assert "sampling: temperature 5.0, top_k 40, seed 0, max_new_tokens 12" in err
    assert "not used of generation_config.json: num_beams" in err
    assert (answer["sampling"]["temperature"], answer["sampling"]["top_k"]) == (5.0, 40)
    options = ("--temperature", 5, "--top-k", 40, "--max-new-tokens", 12, "--format", "json")
    same = run(bundle, "--greedy", "--image", CHART, GREEN, "--max-new-tokens", 12, "--format", "json")[1]
    assert json.loads(same)["sampling"]["temperature"] == 0
    assert json.loads(same)["token_ids"] != answer["token_ids"]
    explicit = json.loads(run(bundle, "--image", CHART, GREEN, *options)[1])
    assert explicit["token_ids"] == answer["token_ids"]


def test_an_option_replaces_one_field_of_the_checkpoint_s_sampling(recommending, run) -> None:
    bundle = recommending(do_sample=True, temperature=0.6, top_p=0.95, max_new_tokens=3)
    _, _, err = run(bundle, "--image", CHART, GREEN, "--top-p", 0.5)
    assert "sampling: temperature 0.6, top_p 0.5, top_k 50, seed 0, max_new_tokens 3" in err
    assert "cut off after 3 tokens" in err


def test_a_recommendation_out_of_range_ends_before_the_model_is_loaded(recommending, run) -> None:
    code, _, err = run(recommending(do_sample=True, temperature="hot"), "?")
    assert code == 1
    assert "temperature is out of range" in err
    assert "--greedy" in err


@pytest.mark.parametrize(("option", "value"), [("--top-p", 2), ("--repetition-penalty", 0), ("--seed", -1)])
def test_a_value_out_of_range_names_its_option(nano_bundle: Path, run, option: str, value: int) -> None:
    code, _, err = run(nano_bundle, "?", option, value)
    assert code == 2
    assert f"where:    {option}\n" in err
    assert f"pass {option} with a value in this range" in err


def test_a_schema_that_cannot_be_read_is_named_with_its_option(nano_bundle: Path, run) -> None:
    code, _, err = run(nano_bundle, "?", "--json-schema", "nowhere.json")
    assert code == 1
    assert "where:    --json-schema nowhere.json\n" in err
    assert "name another with --json-schema" in err


def test_an_empty_name_of_an_image_is_refused(nano_bundle: Path, run) -> None:
    code, _, err = run(nano_bundle, "?", "--image", "")
    assert code == 2
    assert "The name of an image is empty" in err


def test_an_empty_stop_text_is_said_to_be_empty(nano_bundle: Path, run) -> None:
    code, _, err = run(nano_bundle, "?", "--stop", "5", "--stop", "")
    assert code == 2
    assert "A stop text is empty.\n  where:    --stop\n" in err
    assert "range" not in err


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("(", "unclosed group, at character 1 of ("),
        ("a(?=b)", "look-around, including look-ahead and look-behind, is not supported, at character 2 of a(?=b)"),
    ],
)
def test_a_wrong_pattern_is_one_line_with_its_cause(nano_bundle: Path, run, pattern: str, found: str) -> None:
    code, _, err = run(nano_bundle, "?", "--regex", pattern)
    assert code == 2
    assert err.splitlines()[1:3] == ["  where:    --regex", f"  found:    {found}"]
    assert "fix:      correct the pattern" in err


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ('{"type": "objekt"}', "Invalid type: objekt"),
        ('{"type": "string", "pattern": "a("}', "unclosed group, at character 2 of a("),
    ],
)
def test_a_wrong_schema_names_its_file_and_cause(
    nano_bundle: Path, run, tmp_path: Path, schema: str, found: str
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(schema)
    code, _, err = run(nano_bundle, "?", "--json-schema", path)
    assert code == 1
    assert err.splitlines()[1:3] == [f"  where:    --json-schema {path}", f"  found:    {found}"]
    assert "fix:      correct the schema" in err


@pytest.mark.parametrize("engine", ["nowhere", "llm-api"])
@pytest.mark.parametrize("target", [(), ("--target", "onnxruntime")], ids=["", "with-target"])
def test_an_engine_that_the_bundle_has_no_target_for_is_named(nano_bundle: Path, run, engine: str, target) -> None:
    code, _, err = run(nano_bundle, "?", "--engine", engine, *target)
    assert code == 2
    assert f"where:    --engine {engine}" in err
    assert "fix:      omit --engine" in err


def test_greedy_and_a_temperature_exclude_each_other(nano_bundle: Path, run) -> None:
    assert run(nano_bundle, "?", "--greedy", "--temperature", "1")[0] == 2


def test_a_stop_string_ends_the_answer_and_not_the_reasoning(nano_bundle: Path, run) -> None:
    asked = (nano_bundle, "--image", CHART, GREEN, "--format", "json")
    whole = json.loads(run(*asked)[1])
    word = whole["reasoning"].split()[2]
    assert json.loads(run(*asked, "--stop", word)[1])["text"] == whole["text"]
    cut = json.loads(run(*asked, "--stop", word, "--stop-in-reasoning")[1])
    assert cut["reasoning"] == whole["reasoning"][: whole["reasoning"].index(word)].rstrip()
    assert json.loads(run(*asked, "--stop", "\n\n", "--stop", whole["text"])[1])["text"] == ""


def test_answer_only_prints_the_answer_alone(nano_bundle: Path, run) -> None:
    asked = (nano_bundle, "--image", CHART, GREEN, "--answer-only")
    assert run(*asked)[1] == "5\n"
    assert "reasoning" not in json.loads(run(*asked, "--format", "json")[1])


def test_the_question_is_read_from_stdin(nano_bundle: Path, run) -> None:
    asked = (nano_bundle, "--image", CHART, "--answer-only")
    assert run(*asked, "-", stdin=f"{GREEN}\n")[1] == run(*asked, GREEN)[1]


@pytest.mark.parametrize(("stdin", "found"), [("", "nothing"), (" \n", "a blank text")])
def test_a_blank_question_on_stdin_is_refused_as_a_blank_argument_is(nano_bundle: Path, run, stdin, found) -> None:
    code, _, err = run(nano_bundle, "-", stdin=stdin)
    assert code == 2
    assert f"found:    {found}\n" in err
    assert "fix:      pipe one in" in err


@pytest.mark.parametrize(("stdin", "what"), [(b"\xff", "not UTF-8"), ("a" * 2**21, "too long")])
def test_a_question_on_stdin_that_cannot_be_used_is_refused(nano_bundle: Path, run, stdin, what) -> None:
    code, _, err = run(nano_bundle, "-", stdin=stdin)
    assert code == 1
    assert what in err


def test_without_a_question_the_message_says_where_to_put_one(tmp_path: Path, run) -> None:
    code, _, err = run(tmp_path)
    assert code == 2
    assert "no question" in err
    assert "QUESTION" in err
    assert "--chat" in err


def test_a_conversation_is_read_line_by_line_and_keeps_its_cache(nano_bundle: Path, run) -> None:
    lines = f"/image {CHART}\n{GREEN}\n\n{BLUE}\n/exit\nnever asked\n"
    code, out, _ = run(nano_bundle, "--chat", "--format", "json", stdin=lines)
    assert code == 0
    first, second = map(json.loads, out.splitlines())
    assert first["text"] == json.loads(run(nano_bundle, "--image", CHART, GREEN, "--format", "json")[1])["text"]
    assert first["reused_tokens"] == 0
    assert second["reused_tokens"] > first["prompt_tokens"] // 2
    shown = run(nano_bundle, "--chat", "--answer-only", "--image", CHART, stdin=f"{GREEN}\n{BLUE}\n")[1]
    assert shown == f"{first['text']}\n{second['text']}\n"


def test_a_conversation_ends_at_a_wrong_line_of_a_pipe(nano_bundle: Path, run) -> None:
    code, _, err = run(nano_bundle, "--chat", stdin="/image no-such.png\n")
    assert (code, "no-such.png" in err) == (1, True)
    code, _, err = run(nano_bundle, "--chat", stdin="/quit\n")
    assert (code, "/exit" in err) == (2, True)
    assert run(nano_bundle, "--chat", "question", stdin="")[0] == 2


def test_a_terminal_s_conversation_goes_on_after_a_wrong_line(nano_bundle: Path) -> None:
    """On a pseudo-terminal, as a person types it."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "r1v_export.cli.main", "run", str(nano_bundle), "--chat", "--answer-only"]
    process = subprocess.Popen(
        [*command, "--image", CHART], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.close(theirs)
    os.write(ours, f"/image no-such.png\n{GREEN}\n/exit\n".encode())
    out, err = process.communicate(timeout=120)
    os.close(ours)
    assert process.returncode == 0
    assert b"no-such.png" in err
    assert out.decode().replace("> ", "").strip() == "5"


@pytest.mark.parametrize("line", ["What is /image about?", "/usr/bin is what?", "/"])
def test_a_line_that_only_looks_like_a_command_is_a_question(line: str) -> None:
    assert image_command(line) is None


def test_the_path_of_an_image_may_hold_spaces() -> None:
    assert image_command("/image my photos/a b.png") == "my photos/a b.png"
    with pytest.raises(UsageError):
        image_command("/image")


def test_run_computes_hashes_only_if_asked_to(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny_bundle / "graphs" / "extra.txt").write_text("not in the manifest")
    options = ["run", str(tiny_bundle), "How many?", "--max-new-tokens", "1"]
    assert main.run(options) == 0
    capsys.readouterr()
    assert main.run([*options, "--verify"]) == 1
    assert "graphs/extra.txt is not in the manifest." in capsys.readouterr().err


def test_an_answer_keeps_the_form_of_a_regular_expression(nano_bundle: Path, run) -> None:
    asked = (nano_bundle, "--image", CHART, GREEN, "--format", "json", "--regex", "[a-z]{3} is [0-9]")
    answer = json.loads(run(*asked)[1])
    assert re.fullmatch("[a-z]{3} is [0-9]", answer["text"])
    assert answer["reasoning"]


def test_an_answer_keeps_a_json_schema(nano_bundle: Path, run, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["tall", "short"]}')
    asked = (nano_bundle, "--image", CHART, GREEN, "--answer-only", "--json-schema", schema)
    assert json.loads(run(*asked)[1]) in ("tall", "short")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_is_no_json_schema_is_refused(nano_bundle: Path, run, tmp_path: Path, text: str) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(text)
    code, _, err = run(nano_bundle, "?", "--json-schema", schema)
    assert code == 1
    assert "JSON" in err
    assert str(schema) in err


def test_the_reasoning_ends_after_its_budget(nano_bundle: Path, run) -> None:
    asked = (nano_bundle, "--image", CHART, GREEN, "--format", "json", "--max-reasoning-tokens", 3)
    answer = json.loads(run(*asked)[1])
    assert answer["reasoning_complete"]
    assert len(answer["reasoning"].split()) <= 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--stop-in-reasoning",), "--stop TEXT"),
        (("--no-think", "--max-reasoning-tokens", 3), "--no-think --max-reasoning-tokens"),
        (("--model", "nowhere"), "--target pytorch"),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path: Path, run, options: tuple[object, ...], named: str) -> None:
    code, _, err = run(tmp_path, "?", *options)
    assert code == 2
    assert named in err


@pytest.mark.parametrize("question", ["", " \n"])
def test_a_blank_question_about_no_image_is_refused(tmp_path: Path, run, question: str) -> None:
    code, _, err = run(tmp_path, question)
    assert code == 2
    assert "a blank text" in err


def test_log_probabilities_come_in_json_only(nano_bundle: Path, run) -> None:
    asked = (nano_bundle, "--image", CHART, GREEN, "--logprobs", 2)
    answer = json.loads(run(*asked, "--format", "json")[1])
    assert len(answer["logprobs"]) == len(answer["token_ids"])
    assert run(*asked)[0] == 2


def test_options_reach_the_sampling(nano_bundle: Path, run) -> None:
    options = ("--temperature", 1, "--min-p", 0.1, "--presence-penalty", 0.5, "--frequency-penalty", -0.5)
    used = json.loads(run(nano_bundle, "?", "--format", "json", "--max-new-tokens", 1, *options)[1])["sampling"]
    assert (used["min_p"], used["presence_penalty"], used["frequency_penalty"]) == (0.1, 0.5, -0.5)
