from __future__ import annotations

import random

import pytest

from r1v_export.runner.streaming import Detokenizer, StopStrings, TrailingSpace, partial_tag_length

SAMPLES = [
    "plain text",
    "naïve café, Zoë",
    "红色的圆在左边。蓝色的方块。",
    "👩‍👩‍👧‍👦 family, flag 🇩🇪, 👍🏽 thumb",
    "a\N{REPLACEMENT CHARACTER}b and \N{REPLACEMENT CHARACTER}",
    "नमस्ते दुनिया",
    "",
]


def one_byte(id_: int) -> bytes:
    """A byte-level vocabulary at its finest: token i is byte i."""
    return bytes([id_])


@pytest.mark.parametrize("text", SAMPLES)
def test_the_stream_is_the_text_and_no_unfinished_character_is_emitted(text):
    detokenizer = Detokenizer(one_byte)
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    pieces.append(detokenizer.flush())
    assert "".join(pieces) == text
    for length in range(len(pieces)):
        assert text.startswith("".join(pieces[:length]))


def test_random_bytes_cut_at_random_stream_to_what_decoding_all_at_once_gives():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("aé漢👍\N{REPLACEMENT CHARACTER}\n") for _ in range(rng.randrange(12))).encode()
        noise = bytes(rng.randrange(256) for _ in range(rng.randrange(6)))
        data = rng.choice([text, text + noise, noise + text, text[: len(text) // 2] + noise + text])
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(8)))
        chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        detokenizer = Detokenizer(chunks.__getitem__)
        streamed = "".join(detokenizer.push(i) for i in range(len(chunks))) + detokenizer.flush()
        assert streamed == data.decode("utf-8", errors="replace")


def test_a_character_that_is_cut_off_at_the_end_comes_out_as_one_replacement():
    detokenizer = Detokenizer(one_byte)
    assert "".join(detokenizer.push(byte) for byte in "好".encode()[:2]) == ""
    assert detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"
    assert detokenizer.flush() == ""


def test_each_token_is_read_once_however_many_bytes_are_invalid():
    asked: list[int] = []

    def token_bytes(id_: int) -> bytes:
        asked.append(id_)
        return b"\xff"

    detokenizer = Detokenizer(token_bytes)
    pieces = [detokenizer.push(id_) for id_ in range(10_000)]
    assert pieces == ["\N{REPLACEMENT CHARACTER}"] * 10_000
    assert asked == list(range(10_000))


def test_white_space_comes_out_once_text_follows_it():
    trailing = TrailingSpace()
    assert [trailing.push(piece) for piece in ("a ", "\n", " b", "\n\n")] == ["a", "", " \n b", ""]


def test_a_stop_string_that_arrives_in_pieces_cuts_the_text_before_it():
    stop = StopStrings(["END", "\n\n"])
    assert [stop.push(piece) for piece in ("abE", "N", "x E", "ND tail")] == ["ab", "", "ENx ", ""]
    assert stop.stopped
    assert stop.push("more") == ""
    assert stop.flush() == ""


def test_the_first_of_several_stop_strings_wins():
    stop = StopStrings(["world", "lo"])
    assert stop.push("hello world") == "hel"


def test_half_a_stop_string_at_the_end_is_text():
    stop = StopStrings(["</s>"])
    assert stop.push("text</") == "text"
    assert stop.flush() == "</"
    assert not stop.stopped


def test_where_stop_strings_fall_does_not_depend_on_the_pieces():
    rng = random.Random(1)
    for _ in range(500):
        text = "".join(rng.choice("ab") for _ in range(12))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randrange(1, 5))) for _ in range(2)]
        whole = StopStrings(stops)
        expected = whole.push(text) + whole.flush()
        cut = min((at for at in (text.find(s) for s in stops) if at >= 0), default=len(text))
        assert expected == text[:cut]
        single = StopStrings(stops)
        streamed = "".join(single.push(c) for c in text) + single.flush()
        # Character by character the stop string that *ends* first wins, which may begin later; never past the cut.
        assert streamed.startswith(expected) or expected.startswith(streamed)
        assert all(s not in streamed for s in stops)


@pytest.mark.parametrize(
    ("text", "length"), [("abc<", 1), ("abc</thin", 6), ("</think>", 0), ("abc", 0), ("", 0), ("<<", 1)]
)
def test_the_partial_tag_at_the_end_of_a_text(text, length):
    assert partial_tag_length(text, ["</think>"]) == length
