"""Golden vectors of engines/text: what `tokenizers` and our Python make of texts, conversations and tokens."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

import r1v_export
from r1v_export.checkpoint.config import read_configuration
from r1v_export.checkpoint.presets import PRESETS
from r1v_export.checkpoint.synth_files import write_auxiliary_files
from r1v_export.generation import Sampling
from r1v_export.processing.pipeline_document import describe_pipeline, document_template
from r1v_export.processing.prompt import Turn, encode
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.processing.tokenizer_files import QWEN2_PATTERN
from r1v_export.runner.answer import AnswerStream, AnswerText, Timings
from tests.serialized.test_prompt_as_data import CONVERSATIONS, GROUNDED

NANO = Path(r1v_export.__file__).parent / "nano/model"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog; they'll say it's 12345 or 3.14159, won't they?\n\n",
    "def f(x):\n    return x ** 2  # code\r\n\tif (a && b) { c[i] += d->e; }\n",
    "naïve café Zoë Ångström Öl straße — „Zitat“ … ½ ² №",
    "红色的圆在左边。蓝色的方块，多少个？日本語のテキスト、한국어 텍스트",
    "नमस्ते दुनिया العربية עברית ไทย Ελληνικά русский язык",
    "🙂👩‍👩‍👧‍👦🇩🇪👍🏽 <|im_start|>user\n<image>\nHow many?<|im_end|><think></think>",
]
BLOCKS = [
    (0x20, 0x7F), (0x00, 0x20), (0x80, 0x250), (0x300, 0x370), (0x370, 0x600), (0x900, 0xA00), (0x1100, 0x1200),
    (0x2000, 0x2070), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xF900, 0xFB00), (0xFF00, 0xFFF0),
    (0x1D100, 0x1D200), (0x1F300, 0x1FA00), (0x20000, 0x20100), (0x10FFF0, 0x110000),
]  # fmt: skip
STREAMED = [
    "<think>", "</think>", "</thi", "<thi", " ", "\n\n", "\x1c", "\u3000", "a", "stop", "st", "é", "🙂", "E.", "中",
]  # fmt: skip
LOOK_ALIKES = ["<|im_end|>", "<IMG_CONTEXT>", "<think>", "</think>", "<img", "<｜User｜>", "<|endoftext|>", "<ref>"]
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u180e", "\u200b", "\u0085", "\x1f", "\x0b"]
ENDINGS = ["'s", "'T", "'ll", "'RE", "'\u017f", "'Ve", "'", "''d", "\u2019s"]


def write(folder: Path) -> None:
    """Write everything that the tests of engines/text read below a new folder."""
    for name, definition in _definitions().items():
        _write_tokenizer(folder / "tokenizers" / name, definition, name)
    for name in PRESETS:
        _write_decoder(folder / "prompts" / name, name)
    _write_streams(folder / "streams")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _definitions() -> dict[str, dict[str, Any]]:
    nano = json.loads((NANO / "tokenizer.json").read_text("utf-8"))
    merges = nano["model"]["merges"]
    pairs_as_text = nano | {"model": nano["model"] | {"merges": ["#version: 0.2", *map(" ".join, merges)]}}
    qwen2 = [pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    llama3 = [
        pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "removed", invert=True),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ]
    sequence = pre_tokenizers.Sequence
    unmerged = _trained(sequence(qwen2), normalizers.NFC(), 1500)
    unmerged["model"]["ignore_merges"] = True
    unmerged["model"]["merges"] = unmerged["model"]["merges"][: len(unmerged["model"]["merges"]) // 2]
    return {
        "nano": nano,
        "merges as text": pairs_as_text,
        "qwen2": _trained(sequence(qwen2), normalizers.NFC(), 3000),
        "gpt2": _trained(pre_tokenizers.ByteLevel(False), None, 2000),
        "prefix space": _trained(pre_tokenizers.ByteLevel(True), normalizers.Sequence([normalizers.NFC()]), 1000),
        "llama3": _trained(sequence(llama3), None, 2000),
        "ignore merges": unmerged,
    }


def _trained(
    pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None, size: int
) -> dict[str, Any]:
    """A tokenizer.json whose merges come from texts in many scripts."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        trained.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rng = random.Random(size)
    texts = [*CORPUS, *(_random_text(rng) for _ in range(3000))]
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, min_frequency=2)
    trained.train_from_iterator(texts, trainer)
    document: dict[str, Any] = json.loads(trained.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [("<|im_end|>", True), ("<think>", False), ("<｜User｜>", True)]
    first = max(document["model"]["vocab"].values()) + 3
    document["added_tokens"] = [
        {"id": id_, "content": name, "special": special, **flags} for id_, (name, special) in enumerate(added, first)
    ]
    return document


def _random_text(rng: random.Random) -> str:
    makers: list[Callable[[], str]] = [
        lambda: rng.choice(CORPUS)[rng.randrange(20) : rng.randrange(20, 90)],
        lambda: "".join(chr(rng.randrange(*rng.choice(BLOCKS))) for _ in range(rng.randrange(1, 20))),
        lambda: "".join(chr(rng.randrange(*BLOCKS[0])) for _ in range(rng.randrange(1, 12))),
        lambda: str(rng.randrange(10 ** rng.randrange(1, 40))),
        lambda: "".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 9))),
        lambda: rng.choice("aZé中ß") + rng.choice(ENDINGS),
        lambda: rng.choice(LOOK_ALIKES),
        lambda: "".join(
            [rng.choice("aeo가\u0915"), *(chr(rng.randrange(0x300, 0x370)) for _ in range(rng.randrange(6)))]
        ),
        lambda: rng.choice("ab中\u0301 ") * rng.randrange(1, 40),
    ]
    return "".join(rng.choice(makers)() for _ in range(rng.randrange(1, 7)))


def _every_character() -> Iterator[str]:
    """All assigned characters in contexts that show whether they are letters, numbers, space, or compose."""
    ranges = (range(0x1, 0xD800), range(0xE000, 0x33480), range(0xE0000, 0xE01F0))
    shown = [f"q{chr(code)}1{chr(code)}\u0345{chr(code)} '{chr(code)}" for each in ranges for code in each]
    step = 500
    for start in range(0, len(shown), step):
        yield "".join(shown[start : start + step])


def _compositions() -> Iterator[str]:
    parts = (unicodedata.decomposition(chr(code)) for code in range(0x110000))
    pairs = ["".join(chr(int(code, 16)) for code in part.split()) for part in parts if part and part[0] != "<"]
    for start in range(0, len(pairs), 50):
        yield "".join(pairs[start : start + 50])
    yield from (f"{vowel}\u11a8\u1161\u11c3" for vowel in ("가", "\u1100\u1161", "\uac01"))


def _texts(name: str) -> Iterator[str]:
    rng = random.Random(name)
    yield from ("", " ", *CORPUS, *LOOK_ALIKES, "".join(LOOK_ALIKES))
    yield from (
        "a" * 5000,
        " " * 5000,
        "\n" * 300 + "x",
        "1" * 999,
        "ab" * 2000,
        "\u0301\u0327" * 2000,
        "x" + " \n" * 500,
        "\x00",
        "\ufeff",
        "\U0010ffff",
    )
    yield from (_random_text(rng) for _ in range(2200 if name == "qwen2" else 400))
    if name == "qwen2":
        yield from _every_character()
        yield from _compositions()


def _write_tokenizer(folder: Path, definition: Mapping[str, Any], name: str) -> None:
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    normalizer, words = tokenizer._plain.normalizer, tokenizer._plain.pre_tokenizer
    cases = []
    for text in _texts(name):
        normalized = text if normalizer is None else normalizer.normalize_str(text)
        lengths = [len(word) for word, _ in words.pre_tokenize_str(normalized)]
        cases.append({"text": text, "normalized": normalized, "words": lengths, "ids": tokenizer.encode_text(text)})
    rng, decoded = random.Random(name), []
    for _ in range(300):
        ids = [rng.randrange(tokenizer.vocab_size + 2) for _ in range(rng.randrange(12))]
        decoded.append({"ids": ids, "text": tokenizer.decode(ids)})
    content = {
        "tokenizer": _describe(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "texts": cases,
        "decoded": decoded,
    }
    _write_json(folder / "golden.json", content)


def _describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """`tokenizer` of pipeline.json."""
    added = [
        {"token": token, "id": added.id, "hidden": tokenizer.hides(token)}
        for token, added in tokenizer.added_tokens.items()
    ]
    return {"definition": "tokenizer.json", "added_tokens": added}


def _write_decoder(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    preset = PRESETS[name]
    with tempfile.TemporaryDirectory() as made:
        write_auxiliary_files(Path(made), preset.config(), preset)
        tokenizer = Tokenizer.from_folder(made)
        spec = read_configuration(Path(made), stores_lm_head=True, stored_dtype="bfloat16").spec
        generation_config = json.loads((Path(made) / "generation_config.json").read_text("utf-8"))
        shutil.copy(Path(made) / "tokenizer.json", folder)
    pipeline = describe_pipeline(spec, tokenizer, generation_config)
    template, rng = document_template(pipeline), random.Random(name)
    cases = []
    for turns in [*CONVERSATIONS.values(), GROUNDED, GROUNDED[-1:], *(_random_turns(rng) for _ in range(15))]:
        tiles = [rng.randrange(1, 4) for _ in range(sum(turn.images for turn in turns))]
        for think in (True, False):
            for grounding in (True, False):
                used = tokenizer.with_grounding() if grounding else tokenizer
                ids = encode(used, template, turns, tiles, pipeline.tokens_per_tile, think=think)
                written = [{"role": turn.role, "text": turn.text, "images": turn.images} for turn in turns]
                cases.append(
                    {"turns": written, "tiles": tiles, "think": think, "grounding": grounding, "ids": _runs(ids)}
                )
    (folder / "pipeline.json").write_text(pipeline.to_json(), encoding="utf-8")
    content = {"stop_ids": sorted(pipeline.stop_ids), "cases": cases}
    _write_json(folder / "golden.json", content)


def _runs(ids: list[int]) -> list[list[int]]:
    """Ids with how often each follows itself: an image is thousands of one token."""
    runs: list[list[int]] = []
    for id_ in ids:
        if runs and runs[-1][0] == id_:
            runs[-1][1] += 1
        else:
            runs.append([id_, 1])
    return runs


def _random_turns(rng: random.Random) -> list[Turn]:
    turns = [Turn("system", rng.choice(["", _random_text(rng)]))] if rng.random() < 0.4 else []
    for _ in range(rng.randrange(3)):
        turns.append(_random_user(rng))
        reasoning = rng.choice(["", "<think>x</think>", "a</think> b </think>\n\n", "\n\n", "\n \n"])
        turns.append(Turn("assistant", reasoning + _random_text(rng)))
    return [*turns, _random_user(rng)]


def _random_user(rng: random.Random) -> Turn:
    images = rng.randrange(3)
    text = "q" + _random_text(rng).replace("<image>", "<img>")
    if images and rng.random() < 0.5:
        text = "<image>".join([text, *(rng.choice(["", "\n", " and "]) for _ in range(images))])
    return Turn("user", text, images)


def _write_streams(folder: Path) -> None:
    folder.mkdir(parents=True)
    tokenizer = Tokenizer.from_folder(NANO)
    shutil.copy(NANO / "tokenizer.json", folder)
    rng = random.Random(0)
    content = {
        "tokenizer": _describe(tokenizer),
        "cases": [_stream_case(rng, tokenizer) for _ in range(4000)],
    }
    _write_json(folder / "golden.json", content)


def _stream_case(rng: random.Random, tokenizer: Tokenizer) -> dict[str, Any]:
    text = "".join(rng.choice(STREAMED) for _ in range(rng.randrange(14)))
    ids = tokenizer.encode_text(text)
    if rng.random() < 0.4:  # Tokens of a character each.
        ids = [id_ for character in text for id_ in tokenizer.encode_text(character)]
    for _ in range(rng.randrange(3)):
        ids.insert(rng.randrange(len(ids) + 1), rng.randrange(tokenizer.vocab_size + 1))
    stop_ids = rng.choice([[496], [], [494, 496]])
    grounding = rng.random() < 0.3
    thinking, in_reasoning = rng.choice([True, False, None]), rng.random() < 0.3
    stops = rng.choice([[], ["stop"], ["stop", "E.", "sto"], ["</think>"], ["\n\n"], ["🙂中"], ["a a", "é"]])
    max_new_tokens = rng.choice([len(ids), len(ids) + 2, 100])
    used = tokenizer.with_grounding() if grounding else tokenizer
    sampling = Sampling(stop=tuple(stops), stop_in_reasoning=in_reasoning)
    stream = AnswerStream(
        0, AnswerText(used.token_bytes, sampling, thinking), frozenset(stop_ids), max_new_tokens, Timings(), 1
    )
    steps: list[list[Any]] = []
    for index, id_ in enumerate([*ids, None]):
        reason = "stop" if id_ in stop_ids else "length" if index + 1 == len(ids) and rng.random() < 0.8 else None
        reason = rng.choice(["cancelled", "deadline"]) if id_ is None else reason
        event = stream.push(id_, reason)  # type: ignore[arg-type]
        steps.append([id_, reason, event.reasoning, event.text])
        if event.answer is not None:
            answer = event.answer
            break
    shown = [tokenizer.special_id(name) for name in used.grounding_tokens]
    return {
        "stop_ids": stop_ids, "shown": shown, "thinking": thinking, "stop_in_reasoning": in_reasoning, "stop": stops,
        "max_new_tokens": max_new_tokens, "steps": steps, "reasoning": answer.reasoning, "text": answer.text,
        "complete": answer.reasoning_complete, "finish_reason": answer.finish_reason,
        "reasoning_tokens": answer.reasoning_tokens,
    }  # fmt: skip
