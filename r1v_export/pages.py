"""Pages of the reports: how their templates are read, and the style that all share (`page_templates/style.css`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from r1v_export.count import Count
from r1v_export.quoting import printable

_SHARED = Path(__file__).parent / "page_templates"


@dataclass(frozen=True)
class MadeBy:
    """What made a page of finished bundles (`page_templates/made_by.html.j2`)."""

    command: str
    """As typed, without its secrets."""
    date: str
    """UTC, ISO 8601."""
    version: str
    """Of this package."""


def environment(templates: Path) -> jinja2.Environment:
    """Reads templates from a folder. Text of models and users is escaped, and can never become markup; a name that a
    template does not know is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, _SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "sentence": sentence,
        "printable": printable,
        "date": date,
        "breakable": breakable,
        "unbroken": unbroken,
        "command": command,
        "whole": whole,
        "counted": Count,
    }
    return environment


def sentence(text: str) -> str:
    """A text with a capital first letter; the rest stays as it is, as the KL of `max KL` has to."""
    return text[:1].upper() + text[1:]


def breakable(text: str) -> Markup:
    """A printable name or path, which a narrow column may break behind its dots, slashes and underscores."""
    return Markup(re.sub(r"([./_]+)", r"\1<wbr>", str(escape(printable(text)))))


def unbroken(text: str) -> Markup:
    """A sentence whose numbers and names, such as `7e-5` and `r1v-nano`, no line break parts at their hyphen."""
    return Markup(re.sub(r"\b([\d.]+e-\d+|[Tt]op-1|r1v-nano)\b", r'<span class="whole">\1</span>', str(escape(text))))


_WHOLE_CHARACTERS = 18
"""A longer word may be wider than a column."""


def whole(text: str) -> Markup:
    """A printable name, which no line break parts if it is short."""
    name = escape(printable(text))
    return Markup(f'<span class="whole">{name}</span>') if len(text) <= _WHOLE_CHARACTERS else name


def command(text: str) -> Markup:
    """A printable command whose options no line break parts at their hyphens."""
    words = printable(text).split(" ")
    return Markup(" ".join(whole(word) if "-" in word else escape(word) for word in words))


def date(iso: str) -> str:
    """A UTC date of ISO 8601 as people read it: `2026-11-27 12:00:00 UTC`."""
    return iso.replace("T", " ").replace("+00:00", " UTC")
