"""Training batches: a few images with the same number of tiles, a conversation about each.

A batch is a function of its number alone, so a resumed run sees exactly what an undisturbed one would.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from r1v_export.model_spec import ModelSpec
from r1v_export.nano import scenes
from r1v_export.nano.dataset import kind_at, scene_and_questions, seeded
from r1v_export.nano.questions import Question
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.prompt import Turn, encode, template_of
from r1v_export.processing.tokenizer import Tokenizer

QUESTIONS_PER_IMAGE = 3
"""Asked one after the other in one conversation. Its earlier reasoning stays in place, unlike when the model is used:
the model then learns early to look up what came before, and each image is shown once for several questions."""
EARLIER_TURN_SHARE = 0.15
"""Share of conversations that begin with a question whose answer has lost its reasoning, as when the model is used."""
NO_REASONING_SHARE = 0.1
"""Share of conversations with thinking off: the prompts open no reasoning and the replies are the answers alone."""
IGNORED = -100
"""Label of a token that is not learned: the prompt's, and padding."""


class Batch(NamedTuple):
    """`pixels` [tiles, 3, S, S]; the others [images, tokens]: one conversation about each image.

    `labels` are learned from the replies; `conclusions` are those among them that come after what is seen.
    """

    pixels: Tensor
    ids: Tensor
    labels: Tensor
    conclusions: Tensor


class Token(NamedTuple):
    """One of a conversation: whether the model says it, and whether it does so after having said what it sees."""

    id: int
    own: bool
    concludes: bool


class Conversation(NamedTuple):
    """Questions about one image. `earlier`, if any, comes before them, without its reasoning."""

    earlier: Question | None
    questions: list[Question]
    think: bool


class Batches(Dataset[Batch]):
    """Batch `number`.

    The first `single_tile_batches` show small images only: they are quicker to learn from. The first
    `crowded_batches` show more objects than will ever be asked about: they teach to look things up.
    """

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        images: int,
        count: int,
        single_tile_batches: int = 0,
        crowded_batches: int = 0,
    ) -> None:
        self.tokenizer = Tokenizer.from_folder(folder)
        self.spec, self.images, self.count = spec, images, count
        self.single_tile_batches, self.crowded_batches = single_tile_batches, crowded_batches

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        rng = Random(number)
        many_tiles = number >= self.single_tile_batches and rng.random() < scenes.MANY_TILE_SHARE
        one_size = rng.choice(scenes.MANY_TILE_SIZES) if many_tiles else None
        max_objects = scenes.CROWD if number < self.crowded_batches else scenes.MAX_OBJECTS
        images, conversations = [], []
        for index in range(number * self.images, (number + 1) * self.images):
            of_image = seeded("train", index)
            size = one_size or of_image.choice(scenes.SINGLE_TILE_SIZES)
            scene, asked = scene_and_questions(of_image, size, kind_at(index), QUESTIONS_PER_IMAGE + 1, max_objects)
            images.append(scenes.draw(scene))
            earlier = asked.pop() if of_image.random() < EARLIER_TURN_SHARE else None
            think = of_image.random() >= NO_REASONING_SHARE
            conversations.append(Conversation(earlier, asked[:QUESTIONS_PER_IMAGE], think))
        pixels, tiles = pixel_values(images, self.spec.tiling)
        rows = [self._tokens(conversation, tiles[0]) for conversation in conversations]
        return Batch(torch.from_numpy(pixels), *_padded(rows))

    def _tokens(self, conversation: Conversation, tiles: int) -> list[Token]:
        template, think = template_of(self.spec), conversation.think
        first, *others = conversation.questions
        turns = [Turn("user", first.text, images=1)]
        if conversation.earlier is not None:
            before = [Turn("user", conversation.earlier.text, images=1), Turn("assistant", conversation.earlier.answer)]
            turns = [*before, Turn("user", first.text)]
        prompt = encode(self.tokenizer, template, turns, [tiles], self.spec.tokens_per_tile, think=think)
        tokens = [*_asked(prompt), *self._reply(first, think)]
        for question in others:
            prompt = encode(self.tokenizer, template, [Turn("user", question.text)], [], 0, think=think)
            tokens += [*_asked(self.tokenizer.encode_text("\n") + prompt), *self._reply(question, think)]
        return tokens

    def _reply(self, question: Question, think: bool) -> Iterator[Token]:
        seen = self.tokenizer.encode_text(question.seen) if think else []
        text = f" {question.conclusion}\n</think>\n\n{question.answer}" if think else question.answer
        concluded = [*self.tokenizer.encode_text(text), self.tokenizer.special_id("<|im_end|>")]
        yield from (Token(id_, own=True, concludes=False) for id_ in seen)
        yield from (Token(id_, own=True, concludes=True) for id_ in concluded)


def _asked(ids: list[int]) -> Iterator[Token]:
    return (Token(id_, own=False, concludes=False) for id_ in ids)


def _padded(rows: list[list[Token]]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded inputs, and for each the token that comes next, once where it is the model's own, once where that
    belongs to a conclusion."""
    longest = max(len(row) for row in rows) - 1
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels, conclusions = torch.full_like(ids, IGNORED), torch.full_like(ids, IGNORED)
    for number, row in enumerate(rows):
        tokens, own, concludes = torch.tensor(row).unbind(-1)
        ids[number, : len(row) - 1] = tokens[:-1]
        labels[number, : len(row) - 1] = tokens[1:].where(own[1:].bool(), IGNORED)
        conclusions[number, : len(row) - 1] = tokens[1:].where(concludes[1:].bool(), IGNORED)
    return ids, labels, conclusions
