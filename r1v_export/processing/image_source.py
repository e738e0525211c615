"""Images named on a command line or in a request: paths, `-`, data URLs, and http(s) URLs where they are allowed."""

from __future__ import annotations

import base64
import binascii
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection
from contextlib import suppress
from http.client import HTTPException
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from PIL import Image

from r1v_export.config import ImagePolicy
from r1v_export.count import Count
from r1v_export.errors import InputError, UsageError
from r1v_export.processing.load_image import load_image
from r1v_export.quoting import shorten_text

STDIN = "-"
MAX_BYTES = 100_000_000
"""Largest encoded image that is taken from a pipe, a data URL or the network."""
MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 10.0
"""Longest wait for a connection, and for the next bytes on it."""
FETCH_TIMEOUT_S = 60.0
"""Longest time for a whole image, from the first connection on, over all redirects."""

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
        UsageError: an empty name, an http(s) URL that is not allowed, or a URL of another scheme.
        InputError: it cannot be read, is larger than `MAX_BYTES`, or as `load_image`.
    """
    if not source:
        raise UsageError("The name of an image is empty.", expected="a path, - or a URL", fix="name a file")
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
        raise UsageError(
            "Images are not read from URLs of this scheme.",
            where=where,
            expected="a path, data:, http:",
            fix="download it and give its path",
        )
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


def fetch(url: str, hosts: Collection[str] | None = None) -> bytes:
    """The body of an http(s) URL. Redirects to other schemes are refused; proxies are those of the environment.

    Args:
        hosts: names of the only hosts that may be asked, also by a redirect; any if None.

    Raises:
        InputError: no such host or page, too slow, too many redirects, or larger than `MAX_BYTES`.
    """
    where = _shown(url)
    with _Deadline(FETCH_TIMEOUT_S) as deadline:
        try:
            content = _fetch(url, where, deadline, hosts)
        except InputError:
            if not deadline.passed:
                raise
    if deadline.passed:  # the content may be cut off
        raise _unreachable(where, f"not finished after {FETCH_TIMEOUT_S:.0f} s")
    return content


def _fetch(url: str, where: str, deadline: _Deadline, hosts: Collection[str] | None) -> bytes:
    try:
        _require_host(url, hosts)
        request = urllib.request.Request(url, headers={"User-Agent": "r1v-export", "Accept": "image/*"})
        with _opener(deadline, hosts).open(request, timeout=CONNECT_TIMEOUT_S) as response:
            return _read_limited(response, where)
    except urllib.error.HTTPError as error:
        error.close()
        raise _unreachable(where, f"{error.code} {error.reason}") from error
    except (OSError, ValueError, HTTPException) as error:  # URLError and time-outs are OSErrors.
        reason = getattr(error, "reason", None) or error
        words = reason.strerror if isinstance(reason, OSError) else None
        raise _unreachable(where, words or reason) from error


class _Deadline:
    """Ends every connection of a fetch when its time has passed: a socket's own timeout starts again with each byte."""

    def __init__(self, seconds: float) -> None:
        self._stopped = False
        self._end = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._stop)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    @property
    def passed(self) -> bool:
        """Whether the time is over, and connections may have been ended."""
        return self._stopped or time.monotonic() >= self._end

    def remaining_s(self) -> float:
        """Seconds that are left, above 0: a socket takes 0 as "do not wait"."""
        return max(self._end - time.monotonic(), 0.001)

    def watch(self, connected: socket.socket) -> None:
        self._sockets.append(connected)
        if self.passed:
            self._stop()

    def _stop(self) -> None:
        self._stopped = True
        for connected in self._sockets:
            with suppress(OSError):  # closed already
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # SSLSocket's own would drop its state in mid-read


class _Watched(urllib.request.AbstractHTTPHandler):
    """Opens connections that a deadline ends, those of redirects too."""

    deadline: _Deadline

    def do_open(self, http_class: Any, req: Any, **http_conn_args: Any) -> Any:
        deadline = self.deadline

        class Connection(http_class):  # type: ignore[misc]
            timeout: float

            def connect(self) -> None:
                self.timeout = min(self.timeout, deadline.remaining_s())
                super().connect()
                deadline.watch(self.sock)

        return super().do_open(Connection, req, **http_conn_args)


class _WatchedHttp(_Watched, urllib.request.HTTPHandler):
    pass


class _WatchedHttps(_Watched, urllib.request.HTTPSHandler):
    pass


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS
    hosts: Collection[str] | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_host(newurl, self.hosts)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_host(url: str, hosts: Collection[str] | None) -> None:
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not an http or https address: {_shown(url)}")
    if hosts is not None and parts.hostname not in hosts:
        raise ValueError(f"{_shown(parts.hostname)} is not one of the allowed hosts: {', '.join(sorted(hosts))}")


def _opener(deadline: _Deadline, hosts: Collection[str] | None) -> urllib.request.OpenerDirector:
    """Knows http and https only: neither files nor FTP, whatever a redirect asks for."""
    opener = urllib.request.OpenerDirector()
    http, https, redirects = _WatchedHttp(), _WatchedHttps(), _HttpRedirects()
    http.deadline = https.deadline = deadline
    redirects.hosts = hosts
    for handler in (
        urllib.request.ProxyHandler(),
        http,
        https,
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
        redirects,
    ):
        opener.add_handler(handler)
    return opener


def _read_limited(stream: Any, where: str) -> bytes:
    """All of a stream, in pieces, so that its length is not taken on trust."""
    read = getattr(stream, "read1", stream.read)
    content = bytearray()
    while chunk := read(_CHUNK_BYTES):
        content += chunk
        if len(content) > MAX_BYTES:
            raise _too_large(where)
    expected = getattr(stream, "length", None)  # of a response: the bytes that are missing
    if expected:
        raise _unreachable(where, f"the connection ended {Count(expected, 'byte')} early")
    return bytes(content)


def _load_named(content: bytes, policy: ImagePolicy, where: str) -> Image.Image:
    try:
        return load_image(content, policy)
    except InputError as error:
        raise InputError(error.what, where=where, expected=error.expected, found=error.found, fix=error.fix) from error


def _malformed(url: str, found: object) -> InputError:
    expected = "data:[type][;base64],DATA"
    fix = "encode the whole file again, such as with: base64 -w0 FILE"
    return InputError("The data URL is malformed.", where=_shown(url), expected=expected, found=found, fix=fix)


def _too_large(where: str) -> InputError:
    fix = "scale it down first, or save it as JPEG"
    return InputError("The image is too large.", where=where, expected=f"at most {MAX_BYTES} bytes", fix=fix)


def _unreachable(where: str, found: object) -> InputError:
    return InputError("The image cannot be fetched.", where=where, found=found, fix="check the address")
