"""Pages of the reports: how their templates are read, and the style that all share (`page_templates/style.css`)."""

from __future__ import annotations

from pathlib import Path

import jinja2

_SHARED = Path(__file__).parent / "page_templates"


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
    environment.filters["sentence"] = sentence
    return environment


def sentence(text: str) -> str:
    """A text with a capital first letter; the rest stays as it is, as the KL of `max KL` has to."""
    return text[:1].upper() + text[1:]
