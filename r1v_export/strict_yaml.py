"""YAML that a user writes, read as strictly as JSON. Apart from `strict`, so that answering needs no PyYAML."""

from __future__ import annotations

import math
from typing import Any

import yaml

from r1v_export.count import Count
from r1v_export.errors import R1VError
from r1v_export.quoting import shorten_text
from r1v_export.strict import MAX_DIGITS, MAX_LEVELS, is_deeper_than

MAX_YAML_CHARACTERS = 1 << 19
"""Of one file: the reader takes seconds for a megabyte, and a recipe with a rule for each linear of a 38B has 60 kB."""

_MAX_MERGED_FIELDS = 1000


def parse_yaml(text: str, raises: type[R1VError], what: str, *, where: object = None) -> Any:
    """The plain values of a YAML text; a key that is given twice is refused.

    Args:
        what: as of `strict.parse_fields`.

    Raises:
        R1VError: of class `raises`: not YAML, too long, nested too deeply, growing without bound by its merge keys, or
            with a number that is not finite or has more than `MAX_DIGITS`.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        found = str(Count(len(text), "character"))
        raise raises(f"{what}: too long.", where=where, expected=f"at most {MAX_YAML_CHARACTERS}", found=found)
    try:
        content = yaml.load(text, Loader=_Loader)
        if is_deeper_than(MAX_LEVELS, content):
            raise RecursionError
    except RecursionError:
        failure = raises(f"{what}: nested too deeply.", where=where, expected=f"at most {MAX_LEVELS} levels")
    except Exception as error:  # PyYAML's constructors of dates, binary data and sets raise all kinds
        failure = raises(f"{what}: not YAML.", where=where, found=shorten_text(_one_line(error)))
    else:
        return content
    raise failure


def _one_line(error: Exception) -> str:
    """PyYAML's message, which names the text as if it were a file."""
    return " ".join(str(error).replace(' in "<unicode string>",', " at").split())


class _Loader(yaml.SafeLoader):
    """Plain values only, each key once, merge keys (`<<`) within bounds."""

    # `anchor` is a name or None; published stubs have it wrong.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                what = f"'{shorten_text(key)}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
            seen.add(key)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MAX_MERGED_FIELDS:
            raise yaml.constructor.ConstructorError(None, None, "a mapping has too many fields", node.start_mark)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise ValueError(f"a number of {len(node.value)} digits")
        return int(super().construct_yaml_int(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        if len(node.value) > MAX_DIGITS or not math.isfinite(number := super().construct_yaml_float(node)):
            raise ValueError(f"{shorten_text(node.value, 40)} is no finite number")
        return float(number)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
