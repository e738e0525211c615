"""A hub on localhost: as much of the protocol as `huggingface_hub.snapshot_download` speaks."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves `folder` as the repository `Org/Model`, branch main; `refuse` answers everything with an error."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.refuse: tuple[int, dict[str, str]] | None = None
        self.served: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        files = sorted(file for file in self.server.folder.iterdir())
        if self.server.refuse is not None:
            self._answer(*self.server.refuse, b"{}")
        elif not path.startswith(("/api/models/Org/Model/", "/Org/Model/")):
            self._answer(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
        elif path.endswith(("/revision/main", f"/revision/{COMMIT}")):
            self._answer_json({"id": "Org/Model", "sha": COMMIT, "siblings": []})
        elif path.endswith(f"/tree/{COMMIT}"):
            entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _etag(f)} for f in files]
            self._answer_json(entries)
        elif f"/resolve/{COMMIT}/" in path:
            self._answer_file(self.server.folder / path.rsplit("/", 1)[1])
        else:
            self._answer(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")

    do_HEAD = do_GET  # noqa: N815

    def _answer_file(self, file: Path) -> None:
        if self.command == "GET":
            self.server.served.append(file.name)
        self._answer(200, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT}, file.read_bytes())

    def _answer_json(self, content: object) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
