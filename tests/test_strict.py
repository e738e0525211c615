"""What a user reads about a wrong field, and that no input makes it long, slow or unreadable."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import r1v_export
from r1v_export.build_file import load_config
from r1v_export.config import BuildConfig
from r1v_export.errors import BundleError, R1VError, UsageError
from r1v_export.manifest import Manifest
from r1v_export.quantization import recipe
from r1v_export.quoting import shorten_value
from r1v_export.strict import StrictModel, load_json, parse_fields, parse_json
from r1v_export.strict_yaml import parse_yaml
from r1v_export.targets.registry import resolved
from r1v_export.targets.tensorrt.config import TensorRTConfig

ALIAS_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
MERGE_BOMB = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 30)
)


def test_files_are_read_by_the_functions_of_strict_only() -> None:
    root = Path(r1v_export.__file__).parent
    alone = {
        root / "strict.py",
        root / "strict_yaml.py",
        root / "pipeline" / "workspace.py",
    }  # the latter ignores records of other versions
    words = ("model_validate_json(", "yaml.safe_load(", "yaml.load(", "except ValidationError")
    texts = {path: path.read_text() for path in root.rglob("*.py") if path not in alone}
    assert [str(path) for path, text in texts.items() if any(word in text for word in words)] == []


def refusal(fields: Any, model: type[StrictModel] = BuildConfig) -> R1VError:
    with pytest.raises(UsageError) as caught:
        parse_fields(model, fields, UsageError, "The build file is invalid", where="build.yaml")
    return caught.value


def test_a_misspelled_field_is_named_with_the_fields_that_there_are() -> None:
    error = refusal({"parity": {"question": 3}})
    assert error.what == "The build file is invalid: unknown field parity.question."
    fields = "enabled, questions, max_new_tokens, gate, streamed_questions, streamed_reply_tokens"
    assert (error.where, error.expected) == ("build.yaml", f"one of {fields}")
    assert error.fix == "did you mean questions?"


def test_a_wrong_choice_is_named_with_the_choices() -> None:
    error = refusal({"precision": "fp7"})
    assert error.what == "The build file is invalid: wrong value of precision."
    assert error.expected == "'fp32', 'fp16', 'bf16', 'fp8', 'int8' or 'int4'"
    assert error.found == "'fp7'"


def test_the_branches_of_a_union_are_one_expectation() -> None:
    error = refusal({"sm": "newest"}, TensorRTConfig)
    assert error.what == "The build file is invalid: wrong value of sm."
    assert error.expected == "a list or 'current'"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"calibration": 3}, "keys with values"),
        ({"targets": {"onnxruntime": 3}}, "keys with values"),
        ({"model": ["a"]}, "a text"),
        ({"link_weights": "perhaps"}, "true or false"),
        ({"parity": {"questions": "many"}}, "a whole number"),
        ({"parity": {"questions": 1.5}}, "a whole number"),
        ({"parity": {"questions": 0}}, "greater than 0"),
    ],
)
def test_a_wrong_type_is_named_in_words_of_the_file_and_not_of_python(fields: Any, expected: str) -> None:
    error = refusal(fields)
    assert error.what.startswith("The build file is invalid: wrong value of ")
    assert error.expected == expected
    assert error.found is not None


def test_a_next_step_for_all_else_gives_way_to_one_that_the_mistake_suggests() -> None:
    for fields, fix in (({"calibration": 3}, "read it"), ({"parities": {}}, "did you mean parity?")):
        with pytest.raises(UsageError) as caught:
            parse_fields(BuildConfig, fields, UsageError, "The build file is invalid", otherwise="read it")
        assert caught.value.fix == fix
        with pytest.raises(UsageError) as caught:
            parse_json(BuildConfig, json.dumps(fields), UsageError, "The build file is invalid", otherwise="read it")
        assert caught.value.fix == fix


def test_errors_after_the_first_are_counted() -> None:
    assert "(and 1 more)" in refusal({"precision": "fp7", "device": "tpu"}).what


def test_the_fields_of_a_chosen_algorithm_are_the_known_ones() -> None:
    weights = {"type": "int8", "granularity": "channel", "algorithm": "rtn", "alpha": 1}
    fields = {"name": "a", "description": "b", "rules": [{"modules": "*", "scheme": {"weights": weights}}]}
    error = refusal(fields, recipe.Recipe)
    assert error.what == "The build file is invalid: unknown field rules.0.scheme.weights.alpha."
    assert error.expected == "one of type, granularity, group_size, algorithm, clip"


def test_an_unknown_algorithm_is_named_with_the_known_ones() -> None:
    weights = {"type": "int8", "granularity": "channel", "algorithm": "magic"}
    fields = {"name": "a", "description": "b", "rules": [{"modules": "*", "scheme": {"weights": weights}}]}
    error = refusal(fields, recipe.Recipe)
    assert error.what == "The build file is invalid: wrong value of rules.0.scheme.weights.algorithm."
    assert (error.expected, error.found) == ("one of 'rtn', 'awq', 'gptq', 'smoothquant', 'imported'", "'magic'")


def test_a_missing_field_is_named() -> None:
    error = refusal({"name": "a", "description": "b"}, recipe.Recipe)
    assert error.what == "The build file is invalid: missing field rules."


@pytest.mark.parametrize(
    ("text", "complaint"), [("{", "not JSON"), ("[" * 100_000, "nested too deeply"), ("[]", "wrong type")]
)
def test_what_is_no_json_object_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(BundleError, match=complaint):
        parse_json(Manifest, text, BundleError, "The manifest is malformed")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "not YAML"),
        ("a: 1\na: 2", "given twice"),
        (f"a: {'9' * 5000}", "not YAML"),
        ("a: 2026-99-99", "not YAML"),
        ("[" * 20_000, "nested too deeply"),
        (MERGE_BOMB, "too many fields"),
    ],
    ids=["open", "twice", "huge integer", "no date", "deep", "merge bomb"],
)
def test_yaml_that_cannot_be_used_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_yaml(text, UsageError, "The build file is invalid")


def test_merge_keys_of_usual_size_work() -> None:
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}"
    assert parse_yaml(text, UsageError, "")["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize("field", ["a29", "model", "targets", "precision", "parity", "calibration"])
def test_an_alias_bomb_is_refused_at_once_and_briefly(tmp_path, field: str) -> None:
    path = tmp_path / "build.yaml"
    path.write_text(ALIAS_BOMB.replace("a29:", f"{field}:"))
    start = time.perf_counter()
    with pytest.raises(UsageError) as caught:
        load_config(path, {})
    assert len(str(caught.value)) < 2000
    assert time.perf_counter() - start < 5
    chained = caught.value.__cause__, caught.value.__context__
    assert not any(isinstance(error, ValidationError) for error in chained), "a traceback would print the whole input"


def test_an_alias_bomb_in_a_target_s_options_is_refused_at_once(tmp_path) -> None:
    path = tmp_path / "build.yaml"
    path.write_text(ALIAS_BOMB + "targets: {onnxruntime: {int4_inputs: *a29}}\n")
    fields = parse_yaml(path.read_text(), UsageError, "")
    start = time.perf_counter()
    with pytest.raises(UsageError, match="int4_inputs") as caught:
        resolved(parse_fields(BuildConfig, {"targets": fields["targets"]}, UsageError, ""))
    assert len(str(caught.value)) < 2000
    assert time.perf_counter() - start < 5


def test_values_are_short_visible_and_never_followed_forever() -> None:
    recursive: list[Any] = []
    recursive.append(recursive)
    values = [
        recursive,
        "x" * 10_000,
        {"k" * 500: "v" * 500},
        10**5000,
        list(range(10_000)),
        object(),
        "\x1b[31m\u202e\n",
    ]
    for value in values:
        shown = shorten_value(value)
        assert len(shown) <= 200
        assert shown.isprintable()
    assert shorten_value({"a": [None, True, 1.5, "b"]}) == "{a: [null, true, 1.5, 'b']}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[NaN]", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("1e999", "1e999 is beyond float64"),
        ("9" * 400, "a number of 400 digits"),
        ("-" + "9" * 10_000, "a number of 10000 digits"),
        (f"1e{'9' * 10_000}", "beyond float64"),
        ("[" * 5000, "nested too deeply"),
        ("[" * 65 + "]" * 65, "nested too deeply"),
        ('{"a":' * 800 + "1" + "}" * 800, "nested too deeply"),
        (r'"\ud800"', "lone surrogate"),
        (b'"\xed\xa0\x80"', "not JSON"),
        (b"\xff", "not JSON"),
        ("", "not JSON"),
    ],
    ids=repr,
)
def test_json_that_cannot_be_used_is_refused(text: str | bytes, complaint: str) -> None:
    for parse in (load_json, lambda *arguments: parse_json(Manifest, *arguments)):
        with pytest.raises(BundleError, match=complaint) as caught:
            parse(text, BundleError, "The file cannot be used")
        assert len(str(caught.value)) < 400


def test_json_of_usual_files_is_read_as_python_does() -> None:
    text = json.dumps({"model_max_length": int(1e30), "a": [1.5, -2, True, None, "\U0001f642 \u4e2d"], "b": {"c": []}})
    assert load_json(text, BundleError, "") == json.loads(text)
    assert load_json("[" * 64 + "]" * 64, BundleError, "")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1.0e+999", "9" * 400, "1:" * 60 + "0", "!!float x"])
def test_yaml_numbers_are_finite_and_of_usual_length(value: str) -> None:
    with pytest.raises(UsageError, match="not YAML"):
        parse_yaml(f"a: {value}", UsageError, "The build file is invalid")


@pytest.mark.parametrize("text", ["&a [*a]", "&a {b: *a}"], ids=["list", "mapping"])
def test_yaml_that_holds_itself_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="nested too deeply"):
        parse_yaml(text, UsageError, "The build file is invalid")


def test_yaml_of_a_megabyte_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="too long"):
        parse_yaml("a: 1 # " * 200_000, UsageError, "The build file is invalid")
