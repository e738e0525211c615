"""The alphabet of byte-level vocabularies: a printable character for each byte, as GPT-2 numbered them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def _characters() -> Iterator[tuple[str, int]]:
    """Printable Latin-1 stands for itself, the other bytes follow from U+0100 on."""
    others = 256
    for byte in range(256):
        if chr(byte).isprintable() and chr(byte) != " ":
            yield chr(byte), byte
        else:
            yield chr(others), byte
            others += 1


BYTE_OF: Mapping[str, int] = dict(_characters())
"""Character -> byte, in the order of the bytes."""
