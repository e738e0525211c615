"""The model that ships is of the family's form, small enough, and answers questions it never saw."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.nano.dataset import GeneratedSample, samples
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.prompt import TEMPLATES, Turn, encode
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.reference.model import ReferenceEngine, load

LARGEST_BYTES = 12_000_000
CAPACITY = 320


@pytest.fixture(scope="module")
def tokenizer(nano: Checkpoint) -> Tokenizer:
    return Tokenizer.from_folder(nano.folder)


@pytest.fixture(scope="module")
def engine(nano: Checkpoint) -> ReferenceEngine:
    return ReferenceEngine(load(nano, torch.float32))


def test_the_weights_are_bfloat16_and_at_most_12_megabytes(nano: Checkpoint):
    assert sum(file.stat().st_size for file in nano.files()) <= LARGEST_BYTES
    assert {info.dtype for info in nano.tensors.values()} == {torch.bfloat16}


def test_every_linear_of_the_language_model_splits_into_int4_groups_of_128(nano: Checkpoint):
    inputs = {name: info.shape[1] for name, info in nano.tensors.items() if name.endswith("_proj.weight")}
    assert len(inputs) == 7 * nano.spec.language.num_layers
    assert all(size % 128 == 0 for size in inputs.values())


def test_the_prompt_is_r1v3s_and_think_is_plain_text(nano: Checkpoint, tokenizer: Tokenizer):
    assert nano.spec.template == "r1v3"
    assert tokenizer.token_id("<think>") is None
    assert len(tokenizer.encode_text("<think>")) > 1


def test_special_tokens_stand_behind_the_ordinary_vocabulary(nano: Checkpoint):
    ordinary = json.loads((nano.folder / "vocab.json").read_text(encoding="utf-8"))
    added = json.loads((nano.folder / "added_tokens.json").read_text(encoding="utf-8"))
    assert sorted(ordinary.values()) == list(range(len(ordinary)))
    assert sorted(added.values()) == list(range(len(ordinary), nano.spec.language.vocab_size))


def test_transformers_tokenizes_a_prompt_into_the_same_ids(nano: Checkpoint, tokenizer: Tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(nano.folder))
    question = "How many crosses do you see? 12 naïve 汉字 <|im_end|"
    ids = encode(tokenizer, TEMPLATES["r1v3"], [Turn("user", question, images=1)], [1], 2)
    message = {"role": "user", "content": f"<img><IMG_CONTEXT><IMG_CONTEXT></img>\n{question}"}
    rendered = theirs.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert ids == theirs(rendered).input_ids


def test_all_texts_of_the_generator_survive_the_tokenizer(tokenizer: Tokenizer):
    for sample in samples("eval", 60):
        for text in (sample.question, sample.reasoning, sample.answer):
            assert tokenizer.decode(tokenizer.encode_text(text)) == text


def reply_to(sample: GeneratedSample, engine: ReferenceEngine, tokenizer: Tokenizer) -> str:
    """Greedy decoding in its plainest form, one sequence, one token at a time."""
    spec = engine.model.spec
    pixels, tiles = pixel_values([sample.image], spec.tiling)
    turns = [Turn("user", sample.question, images=1)]
    ids = encode(tokenizer, TEMPLATES[spec.template], turns, tiles, spec.tokens_per_tile)
    image_embeds = engine.projector(engine.vision(pixels)).reshape(-1, spec.language.hidden_size)
    decoder = engine.decoder(1, CAPACITY)
    stop, no_image = tokenizer.special_id("<|im_end|>"), image_embeds[:0]
    reply: list[int] = []
    new, start = ids, 0
    while stop not in reply and start + len(new) < CAPACITY:
        embeds = engine.embed(np.array([new]), image_embeds if start == 0 else no_image)
        end = start + len(new)
        positions = np.arange(start, end)[None]
        logits = decoder.step(embeds, positions, np.array([start]), np.array([end]), np.array([[len(new) - 1]]))
        new, start = [int(logits[0, 0].argmax())], end
        reply += new
    return tokenizer.decode(reply)


def test_eighteen_of_twenty_held_out_questions_are_answered_rightly(engine: ReferenceEngine, tokenizer: Tokenizer):
    questions = list(samples("eval", 20))
    replies = [reply_to(sample, engine, tokenizer) for sample in questions]
    assert all(reply.startswith("I see ") and "</think>" in reply for reply in replies)
    answers = [reply.rpartition("</think>")[2].strip() for reply in replies]
    right = [answer == sample.answer for answer, sample in zip(answers, questions, strict=True)]
    assert sum(right) >= 18, [
        (s.question, s.answer, r) for s, r, ok in zip(questions, replies, right, strict=True) if not ok
    ]
