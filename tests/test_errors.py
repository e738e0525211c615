"""No value makes an error long, slow, unreadable or impossible: neither as text nor as JSON."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path
from typing import Any

import pytest

import r1v_export
from r1v_export.errors import InputError, R1VError


class Faulty:
    def __str__(self) -> str:
        raise RecursionError


def recursive() -> list[Any]:
    values: list[Any] = [{}]
    values[0]["self"] = values
    return values


def alias_bomb() -> list[Any]:
    level: list[Any] = ["x"] * 10
    for _ in range(30):
        level = [level] * 10
    return level


HOSTILE = {
    "long": "x" * 10_000_000,
    "terminal escapes": "\x1b]0;title\x07\x1b[2J\r\x9b31m",
    "bidi": "\u202egnp.exe\u2066\u200f",
    "surrogates": "\udcff\ud800",
    "lines": "a\nb\u2028c\x85d",
    "wide": "\U0001f642" * 5000,
    "quotes": '"\\' * 5000,
    "recursive": recursive(),
    "alias bomb": alias_bomb(),
    "dict": {"k" * 1000: list(range(10**6))},
    "integer": 10**100_000,
    "path": Path("/tmp") / ("\x1b" * 3000),
    "exception": ValueError("y" * 10_000),
    "faulty": Faulty(),
    "bytes": b"\x00" * 10_000,
    "set": {"a" * 9000},
}


@pytest.mark.parametrize("field", ["what", "where", "expected", "found", "fix"])
@pytest.mark.parametrize("name", HOSTILE)
def test_an_error_is_short_and_visible_whatever_it_is_about(name: str, field: str) -> None:
    value = HOSTILE[name]
    if field in ("what", "fix") and not isinstance(value, str):
        value = str(value)[:10_000] if name in ("exception", "path") else "plain"
    start = time.perf_counter()
    error = R1VError(**{"what": "It broke.", field: value})
    texts = [str(error), *error.args, json.dumps(error.as_dict()), json.dumps(error.as_dict(), indent=2)]
    assert time.perf_counter() - start < 2
    assert max(len(text.encode()) for text in texts) < 4000
    assert all(line.isprintable() for text in texts for line in text.split("\n"))
    assert error.as_dict()[field]


def test_many_long_fields_share_the_room_and_short_ones_stay_whole() -> None:
    long = "\u00e9" * 9000
    error = InputError(long, where="image.png", expected=long, found=long, fix=long)
    shown = error.as_dict()
    assert shown["where"] == "image.png"
    assert all(str(shown[name]).endswith("...") for name in ("what", "expected", "found", "fix"))
    assert 3000 < len(json.dumps(shown, indent=2)) < 4000


def test_only_a_fix_has_lines() -> None:
    error = R1VError("It broke.", found="a\nb", fix="run\n  this")
    assert str(error) == "It broke.\n  found:    a\\nb\n  fix:      run\n  this"


def test_what_is_short_and_plain_is_shown_as_it_is() -> None:
    error = R1VError("Größe <｜User｜> 中.", where=Path("/a b/ü"), expected=2, found=[1, "x", None], fix="do")
    assert error.as_dict() == {
        "error": "R1VError",
        "exit_code": 1,
        "what": "Größe <｜User｜> 中.",
        "where": "/a b/ü",
        "expected": "2",
        "found": "[1, 'x', null]",
        "fix": "do",
    }


def test_every_usage_error_names_the_next_step() -> None:
    """Of what was typed, the user can always change something: an error that does not say what is half of one."""
    silent = []
    for path in (Path(r1v_export.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UsageError":
                named = {keyword.arg for keyword in node.keywords}
                if not named & {"fix", None}:
                    silent.append(f"{path}:{node.lineno}")
    assert not silent
