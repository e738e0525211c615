"""The image token's id is looked up, in whichever tokenizer files there are."""

from __future__ import annotations

import json

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.tokens import added_tokens
from tests.checkpoint.conftest import edit_json, refusal, set_key

FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")


@pytest.mark.parametrize("kept", FILES)
def test_any_one_of_the_tokenizer_files_is_enough(tiny, kept):
    expected = added_tokens(tiny)
    for name in set(FILES) - {kept}:
        (tiny / name).unlink()
    assert added_tokens(tiny) == expected
    assert Checkpoint.open(tiny).spec.image_token_id == expected["<IMG_CONTEXT>"] == 517


def test_a_tokenizer_without_an_image_token_is_refused(tiny):
    for name in FILES:
        (tiny / name).unlink()
    error = refusal(tiny)
    assert "no <IMG_CONTEXT> token" in error.what
    assert "added_tokens.json" in error.expected


def test_tokenizer_files_that_disagree_are_refused(tiny):
    edit_json(tiny / "added_tokens.json", lambda tokens: tokens.update({"<IMG_CONTEXT>": 3}))
    error = refusal(tiny)
    assert "disagree about the id of <IMG_CONTEXT>" in error.what
    assert (error.expected, error.found) == (517, 3)
    assert "added_tokens.json" in str(error.where)


def test_an_image_token_outside_the_vocabulary_is_refused(tiny):
    set_key(tiny, "llm_config.vocab_size", 500)
    error = refusal(tiny)
    assert "outside the vocabulary" in error.what
    assert error.expected == "an id below vocab_size 500"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", {"added_tokens": [3]}),
        ("tokenizer.json", {"added_tokens": [{"content": "<img>"}]}),
        ("tokenizer.json", {"added_tokens": 3}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<img>"}}}),
        ("added_tokens.json", {"<img>": None}),
    ],
)
def test_added_tokens_of_another_form_are_refused(tiny, name, content):
    (tiny / name).write_text(json.dumps(content))
    error = refusal(tiny)
    assert name in error.what
    assert "copy the tokenizer files" in error.fix
