from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from r1v_export.errors import InputError
from r1v_export.processing.prompt import Turn
from r1v_export.runner.conversation import Conversation
from r1v_export.runner.prompt_encoder import Request
from r1v_export.runner.sampling import Sampling
from tests.runner.test_engine_runner import image

SHORT = Sampling(max_new_tokens=10)


def ask(conversation, text, *images, sampling=SHORT, cancel=None):
    return list(conversation.ask(text, images, sampling, cancel))[-1].answer


def test_each_turn_is_answered_as_the_whole_conversation_would_be(runner):
    conversation, images, turns = Conversation(runner), (), ()
    for text, new in [("What is this?", (image(60, 60),)), ("And this?", (image(120, 56, 3),)), ("Sure?", ())]:
        images, turns = (*images, *new), (*turns, Turn("user", text, images=len(new)))
        expected = runner.answer(Request(turns, images), SHORT)
        answer = ask(conversation, text, *new)
        assert answer.token_ids == expected.token_ids
        assert answer.prompt_tokens == expected.prompt_tokens
        turns = (*turns, Turn("assistant", expected.text))
        assert conversation.turns == turns


def test_later_turns_reuse_the_cache_and_encode_no_image_twice(runner, monkeypatch):
    encoded = []
    real = runner.engine.vision
    monkeypatch.setattr(runner.engine, "vision", lambda tiles: encoded.append(len(tiles)) or real(tiles))
    conversation = Conversation(runner)
    first = ask(conversation, "What is this?", image(60, 60))
    second = ask(conversation, "Sure?")
    assert encoded == [1]
    assert first.reused_tokens == 0
    # All of the first prompt but its opened reasoning, which is not repeated in later prompts.
    assert second.reused_tokens == first.prompt_tokens - len("<think>\n")


def test_a_conversation_that_outgrows_its_cache_gets_a_larger_one(runner):
    conversation = Conversation(runner)
    ask(conversation, "Short?")
    capacity = conversation.batch.rows.capacity
    turns = (*conversation.turns, Turn("user", "long " * 60))
    answer = ask(conversation, "long " * 60)
    assert conversation.batch.rows.capacity > capacity
    assert answer.token_ids == runner.answer(Request(turns), SHORT).token_ids


def test_a_turn_that_cannot_be_used_changes_nothing(runner):
    conversation = Conversation(runner, system="Be brief.")
    ask(conversation, "Hello?")
    before = conversation.turns
    with pytest.raises(InputError):
        ask(conversation, "   ")
    with pytest.raises(InputError):
        ask(conversation, "word " * 400)
    assert conversation.turns == before
    turns = (*before, Turn("user", "Still there?"))
    assert ask(conversation, "Still there?").token_ids == runner.answer(Request(turns), SHORT).token_ids


def test_an_abandoned_answer_is_forgotten(runner):
    conversation = Conversation(runner)
    ask(conversation, "One?", image(60, 60))
    before = conversation.turns
    next(conversation.ask("Two?", [image(60, 60, 9)], SHORT))
    assert conversation.turns == before
    turns, images = (*before, Turn("user", "Three?", images=1)), (image(60, 60), image(60, 60, 7))
    expected = runner.answer(Request(turns, images), SHORT)
    assert ask(conversation, "Three?", images[1]).token_ids == expected.token_ids


def test_a_cancelled_answer_stays_in_the_conversation_as_far_as_it_came(runner):
    conversation, cancel = Conversation(runner, think=False), threading.Event()
    events = []
    for event in conversation.ask("Go on?", (), SHORT, cancel):
        events.append(event)
        if len(events) == 5:
            cancel.set()
    assert events[-1].answer.finish_reason == "cancelled"
    assert conversation.turns[-1] == Turn("assistant", events[-1].answer.text)
    turns = (*conversation.turns, Turn("user", "More?"))
    expected = runner.answer(Request(turns, think=False), SHORT)
    assert ask(conversation, "More?").token_ids == expected.token_ids


def test_a_turn_cancelled_before_it_began_is_no_part_of_the_conversation(runner):
    conversation, cancel = Conversation(runner), threading.Event()
    cancel.set()
    assert ask(conversation, "Hi?", image(60, 60), cancel=cancel).finish_reason == "cancelled"
    assert conversation.turns == ()


def test_answering_needs_no_torch():
    modules = "r1v_export.runner.conversation, r1v_export.targets.onnxruntime.runtime.engine"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
