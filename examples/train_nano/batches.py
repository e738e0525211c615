"""Training batches: a few pictures with the same number of tiles, several questions about each.

A batch is a function of its number alone, so a resumed run sees exactly what an undisturbed one would.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from r1v_export.checkpoint.spec import ModelSpec
from r1v_export.nano import scenes
from r1v_export.nano.dataset import kind_at, scene_and_questions, seeded
from r1v_export.nano.questions import Question
from r1v_export.reference.preprocess import pixel_values
from r1v_export.reference.prompt import TEMPLATES, Turn, encode
from r1v_export.reference.tokenizer import Tokenizer

QUESTIONS_PER_PICTURE = 2
EARLIER_TURN_SHARE = 0.15
"""Share of rows in which another question about the picture was asked and answered before."""
NO_THOUGHT_SHARE = 0.1
"""Share of rows with thinking off: the prompt opens no thought and the reply is the answer alone."""
IGNORED = -100
"""Label of a token that is not learned: the prompt's, and padding."""


class Batch(NamedTuple):
    """`pixels` [tiles, 3, S, S]; `ids` and `labels` [rows, tokens]; the rows of one picture follow each other."""

    pixels: Tensor
    ids: Tensor
    labels: Tensor


class Reply(NamedTuple):
    """A conversation, whether the model thinks, and what it says."""

    turns: list[Turn]
    think: bool
    text: str


class Batches(Dataset[Batch]):
    """Batch `number`. The first `single_tile_batches` show small pictures only: they are quicker to learn from."""

    def __init__(self, folder: Path, spec: ModelSpec, pictures: int, count: int, single_tile_batches: int) -> None:
        self.tokenizer = Tokenizer.from_folder(folder)
        self.spec, self.pictures, self.count = spec, pictures, count
        self.single_tile_batches = single_tile_batches

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        rng = Random(number)
        many_tiles = number >= self.single_tile_batches and rng.random() < scenes.MANY_TILE_SHARE
        one_size = rng.choice(scenes.MANY_TILE_SIZES) if many_tiles else None
        images, replies = [], []
        for index in range(number * self.pictures, (number + 1) * self.pictures):
            of_picture = seeded("train", index)
            size = one_size or of_picture.choice(scenes.SINGLE_TILE_SIZES)
            scene, asked = scene_and_questions(of_picture, size, kind_at(index), QUESTIONS_PER_PICTURE + 1)
            images.append(scenes.draw(scene))
            replies += [_reply(question, asked[-1], of_picture) for question in asked[:-1]]
        pixels, tiles = pixel_values(images, self.spec.tiling)
        rows = [self._row(reply, tiles[0]) for reply in replies]
        return Batch(torch.from_numpy(pixels), *_padded(rows))

    def _row(self, reply: Reply, tiles: int) -> tuple[list[int], list[int]]:
        """Ids of the prompt and of the reply."""
        template, tokens = TEMPLATES[self.spec.template], self.spec.tokens_per_tile
        prompt = encode(self.tokenizer, template, reply.turns, [tiles], tokens, think=reply.think)
        return prompt, [*self.tokenizer.encode_text(reply.text), self.tokenizer.special_id("<|im_end|>")]


def _reply(question: Question, earlier: Question, rng: Random) -> Reply:
    """What the model shall say to a question, most often the first, and with a thought."""
    turns = [Turn("user", question.text, images=1)]
    if rng.random() < EARLIER_TURN_SHARE:
        turns = [Turn("user", earlier.text, images=1), Turn("assistant", earlier.answer), Turn("user", question.text)]
    if rng.random() < NO_THOUGHT_SHARE:
        return Reply(turns, think=False, text=question.answer)
    return Reply(turns, think=True, text=f"{question.thought}\n</think>\n\n{question.answer}")


def _padded(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Right-padded inputs, and for each the token that comes next where that is the reply's."""
    longest = max(len(prompt) + len(reply) for prompt, reply in rows) - 1
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    for row, (prompt, reply) in enumerate(rows):
        tokens = torch.tensor(prompt + reply)
        ids[row, : len(tokens) - 1] = tokens[:-1]
        labels[row, len(prompt) - 1 : len(tokens) - 1] = tokens[len(prompt) :]
    return ids, labels
