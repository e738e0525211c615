"""Images by name: standard input, data URLs against urllib's own reader, and a server on this machine."""

from __future__ import annotations

import base64
import io
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
from PIL import Image

from r1v_export.errors import InputError, UsageError
from r1v_export.processing import image_source
from r1v_export.processing.image_source import open_image, read_data_url


def png() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()
PIXELS = Image.open(io.BytesIO(PNG)).tobytes()
DATA_URLS = [
    "data:image/png;base64," + base64.b64encode(PNG).decode(),
    "data:image/png," + quote_from_bytes(PNG),
    "data:image/png;charset=x;base64," + quote_from_bytes(base64.encodebytes(PNG)),
]


def test_a_path_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    assert open_image(str(tmp_path / "a.png")).tobytes() == PIXELS


def test_a_dash_is_standard_input():
    assert open_image("-", stdin=io.BytesIO(PNG)).tobytes() == PIXELS
    with pytest.raises(InputError, match=r"(?s)not an image.*standard input"):
        open_image("-", stdin=io.BytesIO(b"no image"))


@pytest.mark.parametrize("url", DATA_URLS)
def test_a_data_url_gives_the_bytes_that_urllib_reads(url):
    with urllib.request.urlopen(url) as response:
        assert read_data_url(url) == response.read() == PNG
    assert open_image(url).tobytes() == PIXELS


def test_a_data_url_in_capitals_is_one():
    assert open_image("DATA:;BASE64," + base64.b64encode(PNG).decode()).tobytes() == PIXELS


@pytest.mark.parametrize(
    "url", ["data:image/png;base64", "data:image/png;base64,%%%", "data:;base64,AAA", "data:,\udcff"]
)
def test_a_malformed_data_url_is_refused(url):
    with pytest.raises(InputError, match="malformed") as caught:
        open_image(url)
    assert "encode the whole file again" in str(caught.value.fix)


def test_a_long_name_is_cut_in_messages():
    with pytest.raises(InputError) as caught:
        open_image("data:image/png;base64," + "A" * 100_000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("policy", ["as_displayed", "published"])
def test_the_policy_reaches_every_source(policy):
    buffer = io.BytesIO()
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(buffer, "PNG")
    url = "data:;base64," + base64.b64encode(buffer.getvalue()).decode()
    shown = (255,) * 3 if policy == "as_displayed" else (0,) * 3
    assert open_image(url, policy).getpixel((0, 0)) == shown
    assert open_image("-", policy, stdin=io.BytesIO(buffer.getvalue())).getpixel((0, 0)) == shown


def test_more_than_the_limit_is_refused_wherever_it_comes_from(monkeypatch, server):
    monkeypatch.setattr(image_source, "MAX_BYTES", len(PNG) - 1)
    for source in (*DATA_URLS, "-", f"{server}/image.png", f"{server}/endless"):
        with pytest.raises(InputError, match="too large"):
            open_image(source, allow_url=True, stdin=io.BytesIO(PNG))
    monkeypatch.setattr(image_source, "MAX_BYTES", len(PNG))
    for source in (*DATA_URLS, "-", f"{server}/image.png"):
        open_image(source, allow_url=True, stdin=io.BytesIO(PNG))


class _Handler(BaseHTTPRequestHandler):
    left: threading.Event
    """Set when a client has left a page that drips."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif self.path == "/image.png":
            self._send(PNG, len(PNG))
        elif self.path == "/short":
            self._send(PNG[:50], len(PNG))
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                return
        elif self.path == "/silent":
            self.server.released.wait(20)
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            self._drip()
        elif self.path == "/slow-long":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self._drip()
        elif self.path == "/slow-header":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
            self._drip()
        elif self.path.startswith("/later/"):
            self.server.released.wait(0.2)
            self.send_response(302)
            self.send_header("Location", f"/later/{self.path[7:]}x")
            self.end_headers()
        else:
            self.send_error(404)

    def _drip(self) -> None:
        try:
            while not self.server.released.wait(0.05):
                self.wfile.write(b"x")
        except OSError:
            self.left.set()

    def _send(self, body: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.released = threading.Event()
        _Handler.left = threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.released.set()
        server.shutdown()


def test_urls_are_not_fetched_unless_allowed(server):
    with pytest.raises(UsageError, match=r"(?s)off.*--allow-url"):
        open_image(f"{server}/image.png")
    assert open_image(f"{server}/image.png", allow_url=True).tobytes() == PIXELS
    assert open_image(f"{server}/to//image.png", allow_url=True).tobytes() == PIXELS


@pytest.mark.parametrize("source", ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "gopher://127.0.0.1/"])
def test_other_schemes_are_refused(source):
    with pytest.raises(UsageError, match="scheme"):
        open_image(source, allow_url=True)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "data:;base64,AAAA"])
def test_redirects_to_other_schemes_are_refused(server, target):
    with pytest.raises(InputError, match=r"(?s)cannot be fetched.*(not allowed|not an http or https address)"):
        open_image(f"{server}/to/{target}", allow_url=True)


@pytest.mark.parametrize(
    ("path", "why"), [("/none", "404"), ("/loop", "redirect"), ("/short", r"early|damaged|IncompleteRead")]
)
def test_pages_that_give_no_image_say_why(server, path, why):
    with pytest.raises(InputError, match=f"(?s)cannot be fetched.*{why}"):
        open_image(server + path, allow_url=True)


@pytest.mark.timeout(15)
def test_servers_that_are_too_slow_are_left(server, monkeypatch):
    monkeypatch.setattr(image_source, "CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(InputError, match=r"(?s)cannot be fetched.*timed out"):
        open_image(f"{server}/silent", allow_url=True)


@pytest.mark.timeout(15)
@pytest.mark.parametrize("path", ["/slow", "/slow-long", "/slow-header", "/to//slow-header", "/later/"])
def test_one_deadline_covers_headers_body_and_redirects(server, monkeypatch, path):
    monkeypatch.setattr(image_source, "FETCH_TIMEOUT_S", 0.5)
    started = time.monotonic()
    with pytest.raises(InputError, match=r"(?s)cannot be fetched.*not finished"):
        open_image(server + path, allow_url=True)
    assert time.monotonic() - started < 5
    assert path == "/later/" or _Handler.left.wait(5), "the connection stays open"


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1/", "http://127.0.0.1:x/", "http://a b/", "http://127.0.0.1:1/"]
)
def test_addresses_that_lead_nowhere_are_one_error(url):
    with pytest.raises(InputError, match="cannot be fetched") as caught:
        open_image(url, allow_url=True)
    assert "Errno" not in str(caught.value)
