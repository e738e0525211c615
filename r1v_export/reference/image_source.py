"""Images named on a command line or in a request: paths, `-`, data URLs, and http(s) URLs where they are allowed."""

from __future__ import annotations

import base64
import binascii
import re
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from PIL import Image

from r1v_export.config import ImagePolicy
from r1v_export.errors import InputError, UsageError
from r1v_export.quoting import shorten_text
from r1v_export.reference.load_image import load_image

STDIN = "-"
MAX_BYTES = 100_000_000
"""Largest encoded image that is taken from a pipe, a data URL or the network."""
MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 10.0
"""Longest wait for a connection, and for the next bytes on it."""
FETCH_TIMEOUT_S = 60.0
"""Longest time for a whole image."""

_SCHEME = re.compile(r"data(?=:)|[a-z][a-z0-9+.-]*(?=://)", re.IGNORECASE)
_CHUNK_BYTES = 1 << 20
_SHOWN_CHARACTERS = 80


def open_image(
    source: str, policy: ImagePolicy = "as_displayed", *, allow_url: bool = False, stdin: BinaryIO | None = None
) -> Image.Image:
    """Read an image by its name: a path, `-` for standard input, or a `data:`, `http:` or `https:` URL.

    Args:
        policy: as for `load_image`.
        allow_url: fetch http(s) URLs; without it nothing is read from the network.
        stdin: what `-` reads instead of the process's standard input.

    Raises:
        UsageError: an http(s) URL that is not allowed, or a URL of another scheme.
        InputError: it cannot be read, is larger than `MAX_BYTES`, or as `load_image`.
    """
    if source == STDIN:
        content = _read_limited(stdin or sys.stdin.buffer, "standard input")
        return _load_named(content, policy, "standard input")
    found = _SCHEME.match(source)
    scheme = found.group().lower() if found else ""
    if not scheme:
        return load_image(source, policy)
    where = _shown(source)
    if scheme == "data":
        return _load_named(read_data_url(source), policy, where)
    if scheme not in ("http", "https"):
        raise UsageError("Images are not read from URLs of this scheme.", where=where, expected="a path, data:, http:")
    if not allow_url:
        raise UsageError(
            "Fetching images from the network is off.", where=where, fix="allow it with --allow-url, or give a path"
        )
    return _load_named(fetch(source), policy, where)


def _shown(source: str) -> str:
    """A name that fits into a message."""
    return shorten_text(source, _SHOWN_CHARACTERS)


def read_data_url(url: str) -> bytes:
    """The content of a `data:` URL (RFC 2397), base64 or percent-encoded; its media type is not used.

    Raises:
        InputError: malformed, or larger than `MAX_BYTES`.
    """
    head, comma, body = url.partition(",")
    if not comma:
        raise _malformed(url, "no comma between its head and its data")
    if len(body) > 3 * MAX_BYTES:  # every byte percent-encoded
        raise _too_large(_shown(url))
    try:
        content = unquote_to_bytes(body)
    except UnicodeEncodeError as error:  # an argument's bytes that are not UTF-8 are lone surrogates
        raise _malformed(url, error) from error
    if head.lower().endswith(";base64"):
        try:
            content = base64.b64decode(b"".join(content.split()), validate=True)
        except binascii.Error as error:
            raise _malformed(url, error) from error
    if len(content) > MAX_BYTES:
        raise _too_large(_shown(url))
    return content


def fetch(url: str) -> bytes:
    """The body of an http(s) URL. Redirects to other schemes are refused; proxies are those of the environment.

    Raises:
        InputError: no such host or page, too slow, too many redirects, or larger than `MAX_BYTES`.
    """
    where = _shown(url)
    try:
        _require_host(url)
        request = urllib.request.Request(url, headers={"User-Agent": "r1v-export", "Accept": "image/*"})
        with _opener().open(request, timeout=CONNECT_TIMEOUT_S) as response:
            return _read_limited(response, where, deadline=time.monotonic() + FETCH_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise _unreachable(where, f"{error.code} {error.reason}") from error
    except (OSError, ValueError, HTTPException) as error:  # URLError and time-outs are OSErrors.
        raise _unreachable(where, getattr(error, "reason", None) or error) from error


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_host(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_host(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not an http or https address: {_shown(url)}")


def _opener() -> urllib.request.OpenerDirector:
    """Knows http and https only: neither files nor FTP, whatever a redirect asks for."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
        _HttpRedirects(),
    ):
        opener.add_handler(handler)
    return opener


def _read_limited(stream: Any, where: str, deadline: float = float("inf")) -> bytes:
    """All of a stream, in pieces, so that neither its length nor its pace is taken on trust."""
    read = getattr(stream, "read1", stream.read)
    content = bytearray()
    while chunk := read(_CHUNK_BYTES):
        content += chunk
        if len(content) > MAX_BYTES:
            raise _too_large(where)
        if time.monotonic() > deadline:
            raise _unreachable(where, f"not finished after {FETCH_TIMEOUT_S:.0f} s")
    expected = getattr(stream, "length", None)  # of a response: the bytes that are missing
    if expected:
        raise _unreachable(where, f"the connection ended {expected} bytes early")
    return bytes(content)


def _load_named(content: bytes, policy: ImagePolicy, where: str) -> Image.Image:
    try:
        return load_image(content, policy)
    except InputError as error:
        raise InputError(error.what, where=where, expected=error.expected, found=error.found, fix=error.fix) from error


def _malformed(url: str, found: object) -> InputError:
    expected = "data:[type][;base64],DATA"
    return InputError("The data URL is malformed.", where=_shown(url), expected=expected, found=found)


def _too_large(where: str) -> InputError:
    return InputError("The image is too large.", where=where, expected=f"at most {MAX_BYTES} bytes")


def _unreachable(where: str, found: object) -> InputError:
    return InputError("The image cannot be fetched.", where=where, found=found, fix="check the address")
