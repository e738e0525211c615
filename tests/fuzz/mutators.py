"""Structure-aware mutations of values, as JSON and YAML have them, and of bytes; they depend on the seed alone."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

STRINGS = [
    "",
    " ",
    "\ud800",
    "\x1b[2J\x07",
    "\u202e",
    "a\nb",
    "x" * 5000,
    "../../etc/passwd",
    "/dev/zero",
    "a\0b",
    "é" * 90,
]
NUMBERS: list[Any] = [0, -1, 1, 2, 7, 2**31, 2**63, -(2**63) - 1, 10**30, 10**120, 0.5, -0.0, 1e308, 5e-324]
NUMBERS += [float("inf"), float("nan")]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], {"": None}, [None] * 3, {"a": {"b": {"c": [1, "x"]}}}]
RAW = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"9" * 10_000,
    b"[" * 5000,
    b'"\\ud83d"',
    b"\xff\xfe",
    b"\xef\xbb\xbf",
]
RAW += [b"\0", b"{}", b'{"a":1,"a":2}', b"1e-999999999", b"[" * 60 + b"]" * 60]


def mutate_value(value: Any, random: Random) -> Any:
    """A copy with one to three changes somewhere inside."""
    root = [copy.deepcopy(value)]
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        parent, key = _place(root, random)
        _change(parent, key, random)
    return root[0] if root else None


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """Bytes changed, cut out, inserted, repeated, or the end cut off."""
    data = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 8])):
        at = random.randrange(len(data) + 1)
        length = random.choice([1, 1, 4, 64])
        match random.randrange(6):
            case 0:
                data[at : at + length] = random.randbytes(length)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = random.choice(RAW)
            case 3:
                data[at:at] = data[at : at + length] * random.choice([1, 2, 100])
            case 4:
                del data[at:]
            case _ if at < len(data):
                data[at] ^= 1 << random.randrange(8)
    return bytes(data)


def mutate_json(value: Any, random: Random) -> bytes:
    """JSON with changed values; one in six with changed bytes, too."""
    text = json.dumps(mutate_value(value, random)).encode()
    return mutate_bytes(text, random) if random.randrange(6) == 0 else text


def _place(root: list[Any], random: Random) -> tuple[Any, Any]:
    """A container inside of `root`, and a key of it; deeper ones as likely as shallow ones."""
    parent, key = root, 0
    while isinstance(parent[key], dict | list) and parent[key] and random.randrange(4):
        parent = parent[key]
        key = random.choice(list(parent)) if isinstance(parent, dict) else random.randrange(len(parent))
    return parent, key


def _change(parent: Any, key: Any, random: Random) -> None:
    value = parent[key]
    match random.randrange(10):
        case 0 if len(parent) > 1:
            del parent[key]
        case 1:
            parent[key] = [value]
        case 2:
            parent[key] = {random.choice(STRINGS): value}
        case 3 if isinstance(parent, dict):
            parent[random.choice(STRINGS)] = parent.pop(key)
        case 4 if isinstance(value, int | float):
            parent[key] = random.choice([value + 1, value - 1, -value, value * 2, float(value), str(value)])
        case 5 if isinstance(value, list) and value:
            value.extend(value[: random.randrange(1, len(value) + 1)])
        case 6:
            nested: Any = value
            for _ in range(random.choice([5, 70, 300])):
                nested = [nested]
            parent[key] = nested
        case 7:
            parent[key] = random.choice(STRINGS)
        case 8:
            parent[key] = random.choice(NUMBERS)
        case _:
            parent[key] = copy.deepcopy(random.choice(OTHERS))
