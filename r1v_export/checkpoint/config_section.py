"""A part of a config.json, read key by key with its type checked and its class default at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r1v_export.errors import CheckpointError
from r1v_export.quoting import shorten_value

LARGEST_SIZE = 2**31 - 1
_MOST_LAYERS = 1000
UNSUPPORTED = "this variant is not supported; see the support matrix in README.md"


class Section:
    """One object of a configuration.

    Args:
        values: its keys.
        path: file and keys that lead here, for messages: "config.json: vision_config".
        defaults: the published configuration class's values for keys that are absent or null.
    """

    def __init__(self, values: Mapping[str, Any], path: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.values, self.path, self.defaults = values, path, defaults or {}

    def has(self, key: str) -> bool:
        """Whether the key itself is there, and not null."""
        return self.values.get(key) is not None

    def get(self, key: str) -> Any:
        """The value, or the class's default where the key is absent or null, or None."""
        value = self.values.get(key)
        return self.defaults.get(key) if value is None else value

    def section(self, *keys: str, defaults: Mapping[str, Any] | None = None) -> Section | None:
        """The first of the nested objects that is there."""
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                if not isinstance(value, dict):
                    raise self.wrong(key, "an object", value)
                return Section(value, f"{self.path}: {key}", defaults)
        return None

    def size(self, key: str, at_most: int = LARGEST_SIZE) -> int:
        """A positive integer. The bounds keep a broken configuration from asking for endless tensors."""
        value = self.get(key)
        if type(value) is not int or not 0 < value <= at_most:
            raise self.wrong(key, f"a positive integer up to {at_most}", value)
        return value

    def layers(self, key: str) -> int:
        """A number of layers."""
        return self.size(key, at_most=_MOST_LAYERS)

    def integer(self, key: str) -> int:
        """Return a required integer."""
        value = self.get(key)
        if type(value) is not int:
            raise self.wrong(key, "an integer", value)
        return value

    def square(self, key: str) -> int:
        """A positive integer, also written as a pair of equal ones (height and width)."""
        value = self.get(key)
        if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if type(value) is not int or not 0 < value <= LARGEST_SIZE:
            raise self.wrong(key, "a positive integer, or two equal ones", self.get(key))
        return value

    def number(self, key: str) -> float:
        """A positive, finite number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise self.wrong(key, "a positive number", value)
        return float(value)

    def flag(self, key: str) -> bool:
        """Return a required boolean."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def choice(self, key: str, *supported: str) -> str:
        """One of the strings that this program knows how to compute."""
        value = self.get(key)
        if value not in supported:
            raise self.wrong(key, " or ".join(supported), value, UNSUPPORTED)
        return str(value)

    def wrong(self, key: str, expected: str, found: object, fix: str | None = None) -> CheckpointError:
        """The error for a value that cannot be used."""
        return CheckpointError(
            f"The configuration's {key} cannot be used.",
            where=f"{self.path}: {key}",
            expected=expected,
            found="nothing" if found is None else shorten_value(found),
            fix=fix or "check config.json against the one the checkpoint was published with",
        )
