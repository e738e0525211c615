"""Code and prose use the field's words: former names, British spellings and the project's former dialect are banned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
FOLDERS = ("r1v_export", "tests", "benchmarks", "examples", "docs", "calibration")
FILES = ("README.md", "CONTRIBUTING.md", "graphs/README.md", "pyproject.toml", "Makefile")
SUFFIXES = (".py", ".md", ".yaml", ".toml", ".j2")

# Pattern -> what to write instead. A space stands for any space, line break or underscore.
BANNED = {
    "class (Site|Fold|Walk|Advance|Tell|Side|Material|Looked|OwnReplies|Arithmetic|Work|Schedule|Observation)": "the "
    "names of today: LinearGroup, SmoothLayer, BoundaryComparator, ProgressCallback, Endpoint, ...",
    "input factors?|multiplies input|pre scale|factor I|pre quant factor": "pre_quant_scale",
    "own replies": "self-generated responses",
    "round trip": "quantize_dequantize",
    "nibbles?": "4-bit value, half byte",
    r"artefacts?\w*": "artifact",
    r"(de|re)?(quanti|initiali|normali|optimi|tokeni|seriali|organi|minimi|recogni)s(e[drs]*|ing|ation)": "-ize",
    r"(behaviou|neighbou|honou|favou)r\w*|colour(s|ed)?|licence|grey|centre": "behavior, color, gray, center",
    "held to": "compared with",
    "told": "reported, shown, known",
    "look(s|ed|ing)? at": "encode, read, examine",
    "left out|leav(e|es|ing) (it |them )?out": "omit, exclude",
    "beside": "next to, with",
    "(do|does) not go together": "exclude each other, do not match",
    "does not do": "is unsuitable, does not implement",
    "thoughts?": "reasoning",
    "pictures?": "image",
    "(?<!exit.)(?<!error.)(?<!source.)codes": "quantized values, qweight",
    "came quantized": "was quantized already",
    "read rightly": "read correctly",
    "hands? out": "return, yield",
    "goes on where": "resumes",
    "made up (image|one|picture)s?": "synthetic",
}

# Files that keep a word, and why.
TRAINED_ON = "r1v-nano was trained on questions with these words, and on what its generator names so"
PROMPTS = "questions of a fixed set: another text would give other numbers"
KEPT = {
    "r1v_export/nano/questions.py": ({"colour", "picture"}, TRAINED_ON),
    "r1v_export/nano/scenes.py": ({"colour", "colours", "centre"}, TRAINED_ON),
    "r1v_export/nano/dataset.py": ({"colour"}, TRAINED_ON),
    "r1v_export/nano/model/README.md": ({"colour"}, TRAINED_ON),
    "examples/train_nano/README.md": ({"colour"}, TRAINED_ON),
    "tests/nano/test_questions.py": ({"colour", "centre", "picture"}, TRAINED_ON),
    "tests/nano/test_scenes.py": ({"colour", "colours"}, TRAINED_ON),
    "README.md": ({"centre"}, TRAINED_ON),
    "r1v_export/parity/samples.py": ({"colours", "picture"}, PROMPTS),
    "tests/quantization/calibration_cases.py": ({"colour"}, PROMPTS),
}


@pytest.mark.parametrize(("pattern", "instead"), BANNED.items())
def test_a_banned_word_is_not_used(pattern: str, instead: str) -> None:
    word = re.compile(rf"(?<![a-z])({pattern})(?![a-z])".replace(" ", r"[\s_]+"), re.IGNORECASE)
    found = [
        f"{path.relative_to(PROJECT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for path, text in _texts()
        for match in word.finditer(text)
        if match[0].lower() not in KEPT.get(path.relative_to(PROJECT).as_posix(), ((), ""))[0]
    ]
    assert not found, f"write {instead}"


def test_every_word_that_is_kept_is_in_its_file() -> None:
    for file, (words, _) in KEPT.items():
        text = (PROJECT / file).read_text(encoding="utf-8").lower()
        assert [word for word in words if word not in text] == [], file


def _texts() -> Iterator[tuple[Path, str]]:
    paths = [PROJECT / file for file in FILES]
    for folder in FOLDERS:
        paths += [path for path in sorted((PROJECT / folder).rglob("*")) if path.suffix in SUFFIXES]
    for path in paths:
        if path != Path(__file__) and "results" not in path.parts:
            yield path, path.read_text(encoding="utf-8")
