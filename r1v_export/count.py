"""Counts with their noun: `1 file`, `2 files`."""

from __future__ import annotations


class Count(int):
    """A number of things that reads as a person writes it, and stays a number.

    In a message it is `1 file` or `2 files`, with `:,` `1,234 files`; in JSON, in fields of a log record and in
    comparisons it is the number.

    Args:
        number: how many.
        noun: of one, with what belongs to it: `empty line`.
        plural: of the noun, unless it is the noun with an s.
    """

    noun: str
    plural: str

    def __new__(cls, number: int, noun: str, plural: str = "") -> Count:
        self = super().__new__(cls, number)
        self.noun, self.plural = noun, plural or f"{noun}s"
        return self

    def __getnewargs__(self) -> tuple[int, str, str]:  # type: ignore[override]  # log records are pickled
        return int(self), self.noun, self.plural

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, form: str) -> str:
        return f"{int(self):{form}} {self.noun if self == 1 else self.plural}"
