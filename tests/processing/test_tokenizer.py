"""Text to ids and back, against transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2Tokenizer

import r1v_export
from r1v_export.errors import CheckpointError, InputError
from r1v_export.processing.tokenizer import Tokenizer, eos_token_ids

NANO = Path(r1v_export.__file__).parent / "nano/model"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)

TEXTS = [
    "",
    " ",
    "How many red circles are there?",
    "I'm sure they'll say it's O'Neil's, DON'T they?",
    "  leading, trailing  and   inner spaces   ",
    "line\nbreaks\r\n\r\nand\ttabs\n\n\n   \n",
    "def f(x):\n    return x ** 2  # code\n",
    "3.14159 12345 1,000,000 ½ ²",
    "naïve café, e\u0301 and \u00e9, \u212b and \u00c5",  # NFC joins and maps these
    "日本語と中文，한국어 العربية हिन्दी",
    "emoji 🙂👩‍👩‍👧‍👦🇩🇪 and \U0001f9ff",
    "\u200b\u00a0\ufeff\u2028\u0000\u001f",
    "<think>reasoning</think>\n\nan answer",
    '{"json": [1, 2, {"a": null}]}',
]

ordinary = st.text(max_size=60).filter(lambda text: "<" not in text)


@pytest.fixture(scope="session")
def nano() -> Tokenizer:
    return Tokenizer.from_folder(NANO)


@pytest.fixture(scope="session")
def oracle() -> Any:
    return AutoTokenizer.from_pretrained(NANO)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the small model's tokenizer files, to spoil."""
    for name in TOKENIZER_FILES:
        shutil.copy(NANO / name, tmp_path)
    return tmp_path


@pytest.fixture
def edit(folder: Path) -> Callable[[str, Callable[[dict], Any]], None]:
    def change(name: str, how: Callable[[dict], Any]) -> None:
        content = json.loads((folder / name).read_text())
        how(content)
        (folder / name).write_text(json.dumps(content))

    return change


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(nano, oracle, text):
    assert nano.encode_text(text) == oracle.encode(text, add_special_tokens=False)


@given(text=ordinary)
def test_ids_of_any_ordinary_text_are_those_of_transformers(nano, oracle, text):
    assert nano.encode_text(text) == oracle.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_undoes_encoding_up_to_nfc(nano, oracle, text):
    ids = nano.encode_text(text)
    assert nano.decode(ids) == oracle.decode(ids)
    assert nano.encode_text(nano.decode(ids)) == ids


@given(ids=st.lists(st.integers(0, 505), max_size=40))
def test_any_ids_decode_as_in_transformers(nano, oracle, ids):
    assert nano.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@given(ids=st.lists(st.integers(0, 505), max_size=40))
def test_the_bytes_of_ids_read_together_are_their_text_as_transformers_decodes_it(nano, oracle, ids):
    text = b"".join(map(nano.token_bytes, ids)).decode("utf-8", errors="replace")
    assert text == oracle.decode(ids, skip_special_tokens=True)


def test_ids_without_a_token_decode_to_nothing(nano):
    hello = nano.encode_text("hello")
    assert nano.decode([nano.vocab_size, -1, *hello, 10**6, 2**32, 2**64]) == "hello"
    assert nano.token_bytes(2**64) == nano.token_bytes(-1) == b""


def test_half_a_character_decodes_to_a_replacement_character(nano):
    ids = nano.encode_text("🙂")
    assert len(ids) > 1
    assert nano.decode(ids[:-1]).endswith("\ufffd")


@pytest.mark.parametrize("files", [("tokenizer.json",), ("vocab.json", "merges.txt", "added_tokens.json")])
def test_either_set_of_files_gives_the_same_tokenizer(nano, folder, files):
    for name in TOKENIZER_FILES:
        if name not in (*files, "tokenizer_config.json"):
            (folder / name).unlink()
    other = Tokenizer.from_folder(folder)
    assert other.added_tokens == nano.added_tokens
    assert other.vocab_size == nano.vocab_size
    assert [other.encode_text(text) for text in TEXTS] == [nano.encode_text(text) for text in TEXTS]
    assert other.decode(range(nano.vocab_size)) == nano.decode(range(nano.vocab_size))


def test_the_older_files_tokenize_as_transformers_qwen2_does(folder):
    (folder / "tokenizer.json").unlink()
    merges = [tuple(line.split(" ")) for line in (NANO / "merges.txt").read_text().splitlines() if " " in line][1:]
    oracle = Qwen2Tokenizer(vocab=json.loads((NANO / "vocab.json").read_text()), merges=merges)
    ours = Tokenizer.from_folder(folder)
    for text in TEXTS:
        assert ours.encode_text(text) == oracle.encode(text), text


@pytest.mark.parametrize("special", [True, False])
def test_no_text_makes_an_added_token(folder, edit, special):
    """Not even tokens that are not special, as QwQ's `<think>`, which tokenizers match in text with specials off."""
    thinking = {"content": "<think>", "id": 506, "special": special, "normalized": False}
    edit(
        "tokenizer.json",
        lambda c: c["added_tokens"].append(thinking | dict.fromkeys(["single_word", "lstrip", "rstrip"], False)),
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.token_id("<think>") == 506
    added = {token.id for token in tokenizer.added_tokens.values()}
    text = " ".join(tokenizer.added_tokens) + "".join(tokenizer.added_tokens)
    ids = tokenizer.encode_text(text)
    assert not added & set(ids)
    assert tokenizer.decode(ids) == text


def test_a_reasoning_stays_visible_although_its_tags_are_special(folder, edit):
    for id_, tag in ((506, "<think>"), (507, "</think>")):
        edit(
            "tokenizer_config.json",
            lambda c, i=id_, t=tag: c["added_tokens_decoder"].update({str(i): {"content": t, "special": True}}),
        )
    tokenizer = Tokenizer.from_folder(folder)
    end = tokenizer.special_id("<|im_end|>")
    assert (
        tokenizer.decode([506, *tokenizer.encode_text("a"), 507, *tokenizer.encode_text("b"), end])
        == "<think>a</think>b"
    )


def test_added_tokens_are_read_from_every_file(folder, edit):
    edit("tokenizer_config.json", lambda c: c["added_tokens_decoder"].update({"510": {"content": "<one>"}}))
    edit("added_tokens.json", lambda c: c.update({"<two>": 511}))
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.token_id("<one>"), tokenizer.token_id("<two>")) == (510, 511)
    assert tokenizer.vocab_size == 512


def test_a_token_named_special_elsewhere_is_hidden(folder, edit):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer.from_folder(folder).added_tokens["<|im_end|>"].special
    edit("added_tokens.json", lambda c: c.update({"<note>": 520}))
    assert not Tokenizer.from_folder(folder).added_tokens["<note>"].special


def test_a_token_that_does_not_exist_is_none_or_an_error(nano):
    assert nano.token_id("<think>") is None
    with pytest.raises(CheckpointError, match=r"(?s)no token <think>.*<\|im_start\|>"):
        nano.special_id("<think>")


def test_a_word_of_the_vocabulary_is_not_an_added_token(nano):
    assert nano.token_id("the") is None


def test_lone_surrogates_are_refused(nano):
    with pytest.raises(InputError, match=r"(?s)not valid Unicode.*character 2"):
        nano.encode_text("ab\ud800c")


def test_truncation_and_padding_of_the_file_are_not_applied(nano, folder, edit):
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    edit("tokenizer.json", lambda c: c.update(truncation=truncation, padding=padding))
    text = "one two three four five six"
    assert Tokenizer.from_folder(folder).encode_text(text) == nano.encode_text(text)


def test_no_beginning_of_sequence_is_added(nano, folder, edit):
    bos = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [495], "tokens": ["<|im_start|>"]}},
    }
    edit("tokenizer.json", lambda c: c.update(post_processor=template))
    assert Tokenizer.from_folder(folder).encode_text("hello") == nano.encode_text("hello")


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"ignore_merges": True}, {"byte_fallback": True, "fuse_unk": True}, {"unk_token": "a", "dropout": 0.5}],
    ids=str,
)
def test_the_vocabulary_is_given_to_the_library_as_it_reads_it_itself(folder, edit, settings, as_text):
    def change(content: dict) -> None:
        content["model"] |= settings
        content["added_tokens"] = []
        if as_text:  # as transformers wrote them before 2024
            content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]

    edit("tokenizer.json", change)
    ours = Tokenizer.from_folder(folder)._plain
    read = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert json.loads(ours.to_str()) == json.loads(read.to_str())


def test_a_version_among_the_merges_is_no_merge(nano, folder, edit):
    edit("tokenizer.json", lambda c: c["model"].update(merges=["#version: 0.2", *map(" ".join, c["model"]["merges"])]))
    tokenizer = Tokenizer.from_folder(folder)
    assert [tokenizer.encode_text(text) for text in TEXTS] == [nano.encode_text(text) for text in TEXTS]


@pytest.mark.parametrize(
    "merges",
    [None, 3, "", {}, {"a b": 1}, [3], ["a"], [["a"]], [["a", "b", "c"]], ["a b", ["a", "b"]], [{"a": 1, "b": 2}]],
)
def test_merges_of_another_kind_are_refused(folder, edit, merges):
    edit("tokenizer.json", lambda c: c["model"].update(merges=merges))
    with pytest.raises(CheckpointError, match="no merges of two tokens each"):
        Tokenizer.from_folder(folder)


def test_another_model_with_a_token_for_each_byte_is_refused(folder, edit):
    edit("tokenizer.json", lambda c: c["model"].update(type="WordPiece"))
    with pytest.raises(CheckpointError, match=r"(?s)not a byte-level BPE.*WordPiece"):
        Tokenizer.from_folder(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"(?s)no tokenizer.*no tokenizer.json, no merges.txt"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "\ufffd", '{"added_tokens": [{}]}', '{"added_tokens": 3}', "[" * 100_000]
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_a_damaged_file_is_refused(folder, name, content):
    if name != "tokenizer.json":
        content = content.replace("added_tokens", "added_tokens_decoder")
    if name == "added_tokens.json" and "decoder" in content:
        content = '{"<a>": "b"}'
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError):
        Tokenizer.from_folder(folder)


def test_a_file_that_is_not_text_is_named(folder):
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be used: not JSON"):
        Tokenizer.from_folder(folder)


def test_a_model_other_than_a_byte_level_bpe_is_refused(folder, edit):
    edit("tokenizer.json", lambda c: c.update(model={"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 0}))
    with pytest.raises(CheckpointError, match=r"(?s)not a byte-level BPE.*Unigram"):
        Tokenizer.from_folder(folder)


def test_a_vocabulary_without_some_byte_is_refused(folder, edit):
    """The tokenizers library would omit such characters from the text silently."""
    edit("tokenizer.json", lambda c: c["model"]["vocab"].pop("~"))
    with pytest.raises(CheckpointError, match="not a byte-level BPE"):
        Tokenizer.from_folder(folder)


def test_a_merge_of_unknown_tokens_is_refused(folder, edit):
    edit("tokenizer.json", lambda c: c["model"]["merges"].append(["qqq", "zzz"]))
    with pytest.raises(CheckpointError, match="damaged"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("line", ["a b c", "ab", "\x00 q"])
def test_a_broken_merges_file_is_refused(folder, line):
    (folder / "tokenizer.json").unlink()
    with (folder / "merges.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(CheckpointError):
        Tokenizer.from_folder(folder)


def test_files_that_disagree_about_a_token_are_refused(folder, edit):
    edit("added_tokens.json", lambda c: c.update({"<img>": 400}))
    with pytest.raises(
        CheckpointError, match=r"(?s)disagree about the token <img>.*added_tokens\.json.*id 497.*id 400"
    ):
        Tokenizer.from_folder(folder)


def test_an_added_token_that_shares_a_words_id_is_refused(folder, edit):
    """Or the word would be a way to write the special token."""
    edit("added_tokens.json", lambda c: c.update({"<trap>": 39}))
    with pytest.raises(CheckpointError, match=r"(?s)share one id.*id 39 for <trap>"):
        Tokenizer.from_folder(folder)


def test_a_merge_that_makes_a_special_token_is_refused(folder, edit):
    def add_merge(content: dict) -> None:
        content["model"]["vocab"] |= {"<i": 600, "mg": 601, "mg>": 602, "<img>": 497}
        content["model"]["merges"] += [["<", "i"], ["m", "g"], ["mg", ">"], ["<i", "mg>"]]

    edit("tokenizer.json", add_merge)
    with pytest.raises(CheckpointError):
        Tokenizer.from_folder(folder)


def test_another_tokenizer_class_needs_its_tokenizer_json(folder, edit):
    edit("tokenizer_config.json", lambda c: c.update(tokenizer_class="LlamaTokenizer"))
    Tokenizer.from_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)Only a Qwen2 tokenizer.*LlamaTokenizer"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("id_", [True, 1.5, "5", None, [496], {"a": 1}, -1, 2**24, 2**31 - 1, 10**30], ids=repr)
@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json", "added_tokens.json"])
def test_ids_are_bounded_before_the_library_sees_them(folder, edit, file, id_):
    if file == "vocab.json":
        (folder / "tokenizer.json").unlink()
    word = "<img>" if file == "added_tokens.json" else "the"
    edit(file, lambda c: (c["model"]["vocab"] if "model" in c else c).update({word: id_}))
    with pytest.raises(CheckpointError, match=file if file != "added_tokens.json" else "no id for an added token"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("affix", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_an_affix_that_the_library_panics_on_is_refused(folder, edit, affix):
    edit("tokenizer.json", lambda c: c["model"].update({affix: "torch.float32"}))
    with pytest.raises(CheckpointError, match=rf"(?s)damaged.*{affix}"):
        Tokenizer.from_folder(folder)


def test_a_panic_of_the_library_is_an_error_of_ours(folder, monkeypatch):
    class PanicException(BaseException):
        """What pyo3 raises; it is no Exception."""

    def panic(*_):
        raise PanicException("index out of bounds")

    monkeypatch.setattr("tokenizers.Tokenizer.from_str", panic)
    with pytest.raises(CheckpointError, match=r"(?s)damaged.*PanicException: index out of bounds"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalizer", {"type": "Lowercase"}),
        ("normalizer", {"type": "Strip", "strip_left": True, "strip_right": True}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("decoder", {"type": "Fuse"}),
    ],
)
def test_a_tokenizer_that_changes_text_is_refused(folder, edit, key, value):
    edit("tokenizer.json", lambda c: c.update({key: value}))
    with pytest.raises(CheckpointError, match="does not give text back"):
        Tokenizer.from_folder(folder)


def test_two_words_of_one_id_are_refused(folder, edit):
    edit("tokenizer.json", lambda c: c["model"]["vocab"].update({"the": c["model"]["vocab"]["low"]}))
    with pytest.raises(CheckpointError, match=r"(?s)share one id.*low and the"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    "value", [True, "0", 0.5, [0.5], [None], [[496]], [True], -1, 506, {"a": 1}, float("inf"), 10**30], ids=repr
)
def test_an_eos_token_id_of_another_kind_is_refused(value):
    with pytest.raises(CheckpointError, match=r"(?s)eos_token_id cannot be used.*from 0 to 505"):
        eos_token_ids({"eos_token_id": value}, 506)


def test_an_eos_token_id_is_none_one_or_several():
    assert [eos_token_ids({"eos_token_id": each}, 506) for each in (None, 0, [], [3, 505])] == [(), (0,), (), (3, 505)]
