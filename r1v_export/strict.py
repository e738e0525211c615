"""The base of all models that are read from files, and the only place where their errors are put into words.

Input is not trusted: a value is never printed whole, since a few lines of YAML with aliases can stand for gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from r1v_export.errors import R1VError

MAX_VALUE_CHARACTERS = 200
"""How much of a value an error message shows."""

_SHOWN_ITEMS = 6
_SHOWN_LEVELS = 3
_MAX_MERGED_FIELDS = 1000
_MAX_EXPECTED_CHARACTERS = 1000

Model = TypeVar("Model", bound=BaseModel)
Location = Sequence[str | int]


class StrictModel(BaseModel):
    """A model that refuses unknown fields and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_fields(
    model: type[Model],
    fields: Any,
    raises: type[R1VError],
    what: str,
    *,
    where: object = None,
    fix: str | None = None,
) -> Model:
    """Validate plain values against a model.

    Args:
        raises: class of the error.
        what: what is invalid, a sentence without its full stop: "The build file is invalid".
        where: file, or file and line.
        fix: next step for the user.

    Raises:
        R1VError: of class `raises`, for the first field that is wrong.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        failure = validation_error(error, model, fields, raises, what, where=where, fix=fix)
    raise failure  # Outside of the handler: a traceback would print the chained error, and with it the whole input.


def parse_json(
    model: type[Model],
    text: str | bytes,
    raises: type[R1VError],
    what: str,
    *,
    where: object = None,
    fix: str | None = None,
) -> Model:
    """`parse_fields` of a JSON text."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            fields = None
        failure = validation_error(error, model, fields, raises, what, where=where, fix=fix)
    raise failure


def parse_yaml(text: str, raises: type[R1VError], what: str, *, where: object = None) -> Any:
    """The plain values of a YAML text; a key that is given twice is refused.

    Args:
        what: as of `parse_fields`.

    Raises:
        R1VError: of class `raises`: not YAML, nested too deeply, or growing without bound by its merge keys.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise raises(f"{what}: not YAML.", where=where, found=shorten_text(" ".join(str(error).split()))) from error
    except RecursionError:
        raise raises(f"{what}: nested too deeply.", where=where) from None


class _Loader(yaml.SafeLoader):
    """Plain values only, each key once, merge keys (`<<`) within bounds."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MAX_MERGED_FIELDS:
            raise yaml.constructor.ConstructorError(None, None, "a mapping has too many fields", node.start_mark)


def validation_error(
    error: ValidationError,
    model: type[BaseModel],
    fields: Any,
    raises: type[R1VError],
    what: str,
    *,
    where: object = None,
    fix: str | None = None,
) -> R1VError:
    """The error that a user meets for pydantic's, which must never be printed itself: it prints the input.

    Args:
        model: what was validated against.
        fields: what was validated; None where it could not be parsed.
    """
    details = error.errors(include_url=False)
    first = details[0]
    if first["type"] == "json_invalid":
        return raises(f"{what}: not JSON.", where=where, found=shorten_text(first["msg"]), fix=fix)
    location = _without_labels(first["loc"], fields, missing=first["type"] == "missing")
    path, kind, message = _path(location), first["type"], first["msg"]
    expected: str | None = None
    found = shorten_value(first["input"])
    if kind == "extra_forbidden":
        known = _known_fields(model, location[:-1], fields)
        close = get_close_matches(str(location[-1]), known, n=1)
        problem, expected, found = f"unknown field {path}", f"one of {', '.join(known)}", path
        fix = f"write {close[0]}" if close and fix is None else fix
    elif kind == "missing":
        problem, expected, found = f"missing field {path}", path, shorten_value(first["input"])
    elif kind == "union_tag_not_found":
        field = _path([*location, _unquoted(first["ctx"]["discriminator"])])
        problem, expected = f"missing field {field}", field
    elif kind == "union_tag_invalid":
        field = _path([*location, _unquoted(first["ctx"]["discriminator"])])
        problem, expected = f"wrong value of {field}", f"one of {first['ctx']['expected_tags']}"
        found = shorten_value(first["ctx"]["tag"])
    elif kind == "value_error":
        message = shorten_text(message.removeprefix("Value error, "), MAX_VALUE_CHARACTERS * 2)
        problem = f"{path}: {message}" if path else message
    else:
        same = [other for other in details if _without_labels(other["loc"], fields) == location]
        problem = f"wrong value of {path}" if path else "wrong type"
        expected = shorten_text(" or ".join(dict.fromkeys(_expected(e["msg"]) for e in same)), _MAX_EXPECTED_CHARACTERS)
    others = {_without_labels(other["loc"], fields) for other in details} - {location}
    # A tuple with a wrong item is also reported as too short.
    more = sum(other != location[: len(other)] for other in others)
    problem += f" (and {more} more)" if more else ""
    return raises(f"{what}: {problem}.", where=where, expected=expected, found=found, fix=fix)


def shorten_value(value: Any) -> str:
    """A value in the notation of JSON, cut to `MAX_VALUE_CHARACTERS`; safe for recursive and huge ones."""
    return shorten_text(_render(value, _SHOWN_LEVELS))


def shorten_text(text: str, limit: int = MAX_VALUE_CHARACTERS) -> str:
    """One line of a text: control characters are escaped, and what is beyond the limit is left out."""
    visible = "".join(char if char.isprintable() else _escaped(char) for char in text[: limit + 1])
    return visible if len(visible) <= limit else f"{visible[: limit - 3]}..."


def _render(value: Any, levels: int) -> str:
    match value:
        case None | True | False:
            return json.dumps(value)
        case int():
            return str(value) if value.bit_length() <= 256 else f"an integer of {value.bit_length()} bits"
        case float():
            return str(value)
        case str():
            return f"'{shorten_text(value)}'"
        case Mapping() if levels:
            return f"{{{_items(_fields(value, levels - 1), len(value))}}}"
        case list() | tuple() if levels:
            return f"[{_items((_render(item, levels - 1) for item in value), len(value))}]"
        case Mapping() | list() | tuple():
            return "..."
        case _:
            return f"a {type(value).__name__}"


def _fields(value: Mapping[Any, Any], levels: int) -> Iterator[str]:
    return (
        f"{shorten_text(str(key)) if isinstance(key, str) else _render(key, 0)}: {_render(item, levels)}"
        for key, item in value.items()
    )


def _items(items: Iterator[str], count: int) -> str:
    """The first items; rendered one at a time, so that the rest costs nothing."""
    shown = [item for _, item in zip(range(_SHOWN_ITEMS), items, strict=False)]
    return ", ".join(shown if count <= _SHOWN_ITEMS else [*shown, "..."])


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _expected(message: str) -> str:
    """ "Input should be greater than 0" -> "greater than 0"."""
    for verb in (" should be ", " should have ", " should "):
        if verb in message:
            return message.split(verb, 1)[1].split(", unable to")[0].removesuffix(" after validation")
    return message


def _unquoted(discriminator: str) -> str:
    return discriminator.strip("'")


def _path(location: Location) -> str:
    """`rules.0.scheme`."""
    return shorten_text(".".join(str(part) for part in location))


def _without_labels(location: Location, fields: Any, *, missing: bool = False) -> tuple[str | int, ...]:
    """A place in the input: pydantic adds the branch of a union that it tried, which the user did not write.

    Args:
        missing: whether the last part is a field that is not there.
    """
    parts: list[str | int] = []
    value = fields
    for index, part in enumerate(location):
        inside = _step(value, part)
        if inside is not _ABSENT:
            parts.append(part)
            value = inside
        elif fields is None or (missing and index == len(location) - 1):
            parts.append(part)
    return tuple(parts)


_ABSENT = object()


def _step(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, _ABSENT)
    if isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
        return value[part]
    return _ABSENT


def _known_fields(model: type[BaseModel], location: Location, fields: Any) -> list[str]:
    """Names of the fields that a model takes at a place; of a union's models, those that the value can be."""
    models, value = [model], fields
    for part in location:
        annotations = [
            m.model_fields[part].annotation for m in models if isinstance(part, str) and part in m.model_fields
        ]
        models = [inner for annotation in annotations for inner in _models_in(annotation)] if annotations else models
        value = _step(value, part)
        models = [m for m in models if _can_be(m, value)] or models
    return list(dict.fromkeys(name for m in models for name in m.model_fields))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _can_be(model: type[BaseModel], value: Any) -> bool:
    """Whether the fields with a fixed choice of values have one of them."""
    choices = {name: f.annotation for name, f in model.model_fields.items() if get_origin(f.annotation) is Literal}
    given = {name: _step(value, name) for name in choices}
    return all(found is _ABSENT or found in get_args(choices[name]) for name, found in given.items())
