"""The base of all models that are read from files, and the only place where their errors are put into words.

Input is not trusted: a value is never printed whole, since a few lines of YAML with aliases can stand for gigabytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from r1v_export.errors import R1VError
from r1v_export.quoting import MAX_VALUE_CHARACTERS, did_you_mean, shorten_text, shorten_value

MAX_LEVELS = 64
"""Of lists and objects in each other."""

MAX_DIGITS = 100
"""Of one number. Published tokenizers have one of 31: a `model_max_length` of 1e30 stands for none."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_EXPECTED_CHARACTERS = 1000


class SettingError(ValueError):
    """What a validator of a model raises for fields that contradict each other, with the user's next step.

    Args:
        what: part of a sentence: "a recipe implies its precision".
        expected, found, fix: as of `R1VError`.
    """

    def __init__(self, what: str, *, expected: str | None = None, found: str | None = None, fix: str) -> None:
        super().__init__(what)
        self.expected, self.found, self.fix = expected, found, fix


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
    otherwise: str | None = None,
) -> Model:
    """Validate plain values against a model.

    Args:
        raises: class of the error.
        what: what is invalid, a sentence without its full stop: "The build file is invalid".
        where: file, or file and line.
        fix: next step for the user.
        otherwise: next step where what is wrong suggests none, as a misspelled name does; `fix` wins over both.

    Raises:
        R1VError: of class `raises`, for the first field that is wrong.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        failure = validation_error(error, model, fields, raises, what, where=where, fix=fix, otherwise=otherwise)
    raise failure  # Outside of the handler: a traceback would print the chained error, and with it the whole input.


def parse_json(
    model: type[Model],
    text: str | bytes,
    raises: type[R1VError],
    what: str,
    *,
    where: object = None,
    fix: str | None = None,
    otherwise: str | None = None,
) -> Model:
    """`parse_fields` of a JSON text."""
    fields = load_json(text, raises, what, where=where, fix=fix or otherwise)
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        failure = validation_error(error, model, fields, raises, what, where=where, fix=fix, otherwise=otherwise)
    raise failure


def load_json(
    text: str | bytes,
    raises: type[R1VError],
    what: str,
    *,
    where: object = None,
    fix: str | None = None,
    unique_keys: bool = False,
) -> Any:
    """The plain values of a JSON text. Every JSON that a user can touch is read here or by `parse_json`.

    Args:
        what: as of `parse_fields`.
        unique_keys: refuse an object that has a key twice; otherwise the last one counts.

    Raises:
        R1VError: of class `raises`: not JSON (NaN and Infinity are none), nested deeper than `MAX_LEVELS`, a number
            beyond float64 or `MAX_DIGITS`, or text that is not Unicode.
    """
    try:
        integer = _integer if _has_many_digits(text) else None
        text = text.decode() if isinstance(text, bytes) else text
        content = json.loads(
            text,
            parse_int=integer,
            parse_float=_finite,
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique if unique_keys else None,
        )
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
        if is_deeper_than(MAX_LEVELS, content):
            raise RecursionError
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        failure = raises(f"{what}: not JSON.", where=where, found=shorten_text(str(error)), fix=fix)
    except UnicodeEncodeError:
        failure = raises(f"{what}: a text holds a lone surrogate.", where=where, expected="Unicode", fix=fix)
    except ValueError as error:
        failure = raises(f"{what}: {error}.", where=where, fix=fix)
    except RecursionError:
        failure = raises(f"{what}: nested too deeply.", where=where, expected=f"at most {MAX_LEVELS} levels", fix=fix)
    else:
        return content
    raise failure  # Outside of the handler: the chained error would hold the whole text.


_DIGITS = bytes(ord("0") if byte in b"0123456789" else ord(" ") for byte in range(256))


def _has_many_digits(text: str | bytes) -> bool:
    """Whether a number can be too long. Without `_integer` a tokenizer is parsed in two thirds of the time."""
    encoded = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return b"0" * (MAX_DIGITS + 1) in encoded.translate(_DIGITS)


def _integer(digits: str) -> int:
    if (count := len(digits.lstrip("-"))) > MAX_DIGITS:
        raise ValueError(f"a number of {count} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if len(digits) > MAX_DIGITS or not math.isfinite(number := float(digits)):
        raise ValueError(f"the number {shorten_text(digits, 40)} is beyond float64")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a name occurs twice")
    return unique


_CONTAINERS = frozenset({dict, list})
"""What parsers of JSON and YAML make; asked by type, since a tokenizer has half a million values."""


def is_deeper_than(levels: int, content: Any) -> bool:
    """Whether lists and mappings lie deeper in each other; aliases are followed once a level."""
    level = [content] if type(content) in _CONTAINERS else []
    for _ in range(levels):
        if not level:
            return False
        inner = chain.from_iterable(item.values() if type(item) is dict else item for item in level)
        level = list({id(child): child for child in inner if type(child) in _CONTAINERS}.values())
    return bool(level)


def validation_error(
    error: ValidationError,
    model: type[BaseModel],
    fields: Any,
    raises: type[R1VError],
    what: str,
    *,
    where: object = None,
    fix: str | None = None,
    otherwise: str | None = None,
) -> R1VError:
    """The error that a user meets for pydantic's, which must never be printed itself: it prints the input.

    Args:
        model: what was validated against.
        fields: what was validated; None where it could not be parsed.
        fix, otherwise: as of `parse_fields`.
    """
    details = error.errors(include_url=False)
    first = details[0]
    if first["type"] == "json_invalid":
        return raises(f"{what}: not JSON.", where=where, found=shorten_text(first["msg"]), fix=fix)
    location = without_labels(first["loc"], fields, missing=first["type"] == "missing")
    path, kind, message = _path(location), first["type"], first["msg"]
    expected: str | None = None
    found = shorten_value(first["input"])
    if kind == "extra_forbidden":
        known = _known_fields(model, location[:-1], fields)
        problem, expected, found = f"unknown field {path}", f"one of {', '.join(known)}", path
        fix = fix or did_you_mean(str(location[-1]), known)
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
        cause = first["ctx"]["error"]
        if isinstance(cause, SettingError):
            expected, found, fix = cause.expected, cause.found or found, fix or cause.fix
    else:
        same = [other for other in details if without_labels(other["loc"], fields) == location]
        problem = f"wrong value of {path}" if path else "wrong type"
        expected = shorten_text(" or ".join(dict.fromkeys(map(expected_words, same))), _MAX_EXPECTED_CHARACTERS)
    others = {without_labels(other["loc"], fields) for other in details} - {location}
    # A tuple with a wrong item is also reported as too short.
    more = sum(other != location[: len(other)] for other in others)
    problem += f" (and {more} more)" if more else ""
    return raises(f"{what}: {problem}.", where=where, expected=expected, found=found, fix=fix or otherwise)


_TYPES = {
    "dict_type": "keys with values",
    "mapping_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "a text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
}
"""Types of pydantic's errors, and the words for what a YAML or JSON file must have there instead."""


def expected_words(detail: Any) -> str:
    """Of an error of pydantic, what the field takes: "Input should be greater than 0" -> "greater than 0"."""
    if detail["type"] in _TYPES:
        return _TYPES[detail["type"]]
    message: str = detail["msg"]
    for verb in (" should be ", " should have ", " should "):
        if verb in message:
            return message.split(verb, 1)[1].split(", unable to")[0].split(" after validation")[0]
    return message


def _unquoted(discriminator: str) -> str:
    return discriminator.strip("'")


def _path(location: Location) -> str:
    """`rules.0.scheme`."""
    return shorten_text(".".join(str(part) for part in location))


def without_labels(location: Location, fields: Any, *, missing: bool = False) -> tuple[str | int, ...]:
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
