"""The command line that runs, for reports that say what made them; secrets in it are not shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from urllib.parse import urlsplit

import click

from r1v_export.quoting import shorten_text

_HIDDEN = "***"
_SECRET_OPTION = re.compile(r"--[\w-]*(token(?!s)|secret|password|api-?key|credential)[\w-]*", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_\w{16,}")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://\S+")
_MAX_CHARACTERS = 2000


def typed_command() -> str:
    """The command of `main.run` that is running, as one line for a POSIX shell."""
    return command_line(click.get_current_context().find_root().obj or ())


def command_line(arguments: Iterable[str]) -> str:
    """The arguments of `r1v-export` as one line. Hidden are values of options named after a secret, user names,
    passwords, queries and fragments of URLs, tokens of the hub; of data URLs, the data."""
    words, hide = ["r1v-export"], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_secret = bool(_SECRET_OPTION.fullmatch(name))
        words.append(_HIDDEN if hide else f"{name}={_HIDDEN}" if is_secret and equals else _without_secrets(argument))
        hide = is_secret and not equals
    return shorten_text(shlex.join(words), _MAX_CHARACTERS)


def _without_secrets(argument: str) -> str:
    if argument.startswith("data:"):
        return f"{argument.partition(',')[0]},..."
    return _HUB_TOKEN.sub(f"hf_{_HIDDEN}", _URL.sub(lambda found: _public_url(found[0]), argument))


def _public_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return _HIDDEN
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(
        netloc=f"{_HIDDEN}@{host}" if "@" in parts.netloc else host,
        query=_HIDDEN if parts.query else "",
        fragment=_HIDDEN if parts.fragment else "",
    ).geturl()
