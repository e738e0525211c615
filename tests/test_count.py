"""Counts read as people write them, wherever the package prints one."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import r1v_export
from r1v_export.count import Count

PACKAGE = Path(r1v_export.__file__).parent

NEVER_ONE = re.compile(
    r"MAX_|LLAMA_CPP|TEXT_TOKENS|GROUP_SIZES|group_size|\.tp$|cpus|^target$|_s\b|^name$|type|mode|kind|wanted|(inputs|modules?|weights|_bytes)$|height"
)
"""Parts of expressions that are never a count of 1: constants, several GPUs, rates, names, an image's height."""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (Count(0, "file"), "0 files"),
        (Count(1, "file"), "1 file"),
        (Count(2, "file"), "2 files"),
        (Count(1, "Gram matrix", "Gram matrices"), "1 Gram matrix"),
        (Count(2, "Gram matrix", "Gram matrices"), "2 Gram matrices"),
    ],
)
def test_one_is_singular(count: Count, text: str) -> None:
    assert str(count) == f"{count}" == "%s" % count == text  # noqa: UP031  log messages are made this way


def test_a_count_stays_a_number() -> None:
    count = Count(1234, "token")
    assert f"{count:,}" == "1,234 tokens"
    assert json.dumps({"tokens": count}) == '{"tokens": 1234}'
    assert count + 1 == 1235
    assert "%d" % count == "1234"  # noqa: UP031
    for same in (copy.copy(count), pickle.loads(pickle.dumps(count))):
        assert (same, str(same)) == (1234, "1234 tokens")


def test_no_text_of_the_package_has_a_number_before_a_plural() -> None:
    trees = {path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    templates = {path.relative_to(PACKAGE): path.read_text() for path in sorted(PACKAGE.rglob("*.html.j2"))}
    plurals = "|".join(sorted({plural for tree in trees.values() for plural in counted_plurals(tree)}))
    follows = re.compile(rf" (\w+ )?({plurals})\b")
    found = [
        f"{path}: {{{expression}}}{text[:40]}"
        for path, tree in trees.items()
        for expression, text in pieces(tree)
        if follows.match(text) and "Count(" not in expression and not NEVER_ONE.search(expression)
    ]
    in_logs = re.compile(rf"%\(\w+\)d (\w+ )?({plurals})\b")
    found += [f"{path}: {text}" for path, tree in trees.items() for text in texts(tree) if in_logs.search(text)]
    in_pages = re.compile(rf"\}}\}} ({plurals})\b")
    found += [
        f"{path}: {line}" for path, page in templates.items() for line in page.splitlines() if in_pages.search(line)
    ]
    assert "files" in plurals
    assert found == []


def counted_plurals(tree: ast.AST) -> Iterator[str]:
    """What is counted in a file: `files`, `lines`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Count":
            nouns = [argument.value for argument in node.args[1:] if isinstance(argument, ast.Constant)]
            plural = nouns[1] if len(nouns) > 1 else f"{nouns[0]}s" if nouns else ""
            yield from (word for word in plural.split() if word.endswith("s"))


def pieces(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Each expression in an f-string, and the text behind it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            for value, after in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant):
                    yield ast.unparse(value.value), after.value


def texts(tree: ast.AST) -> Iterator[str]:
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
