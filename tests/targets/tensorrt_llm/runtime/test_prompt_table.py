from __future__ import annotations

import numpy as np
import pytest

from r1v_export.errors import InputError
from r1v_export.generation import EncodedImage
from r1v_export.targets.tensorrt_llm.runtime.prompt_table import TablePrompt

VOCAB, HIDDEN, IMAGE = 100, 8, 42


def image(value: float, rows: int = 3) -> EncodedImage:
    pixels = np.full((1, 3, 4, 4), value, dtype=np.float32)
    return EncodedImage.of(pixels, np.full((1, rows, HIDDEN), value, dtype=np.float32))


def prompt(*images: EncodedImage, text: int = 2) -> TablePrompt:
    ids = [1] * text + [IMAGE] * sum(len(p.embeds) for p in images) + [2]
    return TablePrompt.of(ids, images, IMAGE, VOCAB, HIDDEN)


def test_image_tokens_become_rows_beyond_the_vocabulary():
    made = prompt(image(0.5, rows=2), image(0.25, rows=1))

    assert made.token_ids == [1, 1, 100, 101, 102, 2]
    assert made.table.tolist() == [[0.5] * HIDDEN, [0.5] * HIDDEN, [0.25] * HIDDEN]


def test_extra_ids_tell_images_apart_and_leave_text_alone():
    made = prompt(image(0.5, rows=2), image(0.25, rows=1))

    text, first, second = made.extra_ids[0], made.extra_ids[2], made.extra_ids[4]
    assert made.extra_ids == [text, text, first, first, second, text]
    assert text == 0
    assert len({text, first, second}) == 3


def test_the_same_image_has_the_same_extra_id_wherever_it_stands():
    one, two = prompt(image(0.5), text=1), prompt(image(0.25), image(0.5), text=4)

    assert one.extra_ids[1] == two.extra_ids[-2]


def test_text_alone_has_an_empty_table():
    assert prompt().table.shape == (0, HIDDEN)


def test_too_few_image_tokens_are_refused():
    with pytest.raises(InputError, match=r"3 image tokens[\s\S]*found:    1"):
        TablePrompt.of([1, IMAGE], [image(0.5)], IMAGE, VOCAB, HIDDEN)


def test_an_id_that_would_be_taken_for_a_row_is_refused():
    with pytest.raises(InputError, match="out of range"):
        TablePrompt.of([VOCAB], [], IMAGE, VOCAB, HIDDEN)
