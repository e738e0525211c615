"""Runs the application under uvicorn, and ends it without losing an answer."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

DRAIN_SECONDS = 30.0
"""How long answers may go on after SIGTERM, unless the caller says."""

KEEP_ALIVE_SECONDS = 75
"""How long a connection without a request stays open: longer than clients (httpx: 5 s) and load balancers (60 s) keep
theirs, or else a request could meet a connection that is just being closed, and be lost."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_start: Callable[[str], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_start(f"http://{f'[{host}]' if ':' in host else host}:{port}")


def run_server(
    app: FastAPI, host: str, port: int, on_start: Callable[[str], None], drain_seconds: float = DRAIN_SECONDS
) -> None:
    """Serve until SIGTERM or SIGINT: then no connection is taken, and answers on their way are finished.

    Args:
        app: of `create_app`.
        port: 0 takes a free one.
        on_start: is given the server's address once it listens.
        drain_seconds: how long answers may go on after the signal; those that are unfinished then are cancelled.

    Raises:
        OSError: it cannot listen: the port is taken, or the host is not this machine's.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(drain_seconds),
        lifespan="on",
    )
    server = _Server(config, on_start)
    with _signals_are_no_errors(), _logged_causes() as causes:
        try:
            server.run()
        except SystemExit:  # uvicorn exits where it cannot listen, after logging why
            raise causes[-1] if causes else OSError("it exited before it listened") from None


@contextmanager
def _logged_causes() -> Iterator[list[OSError]]:
    """Errors that uvicorn logs, kept from the log for who raises them; what is left, in words of ours."""
    causes: list[OSError] = []

    def keep(record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str) and record.msg.startswith("Cancel %s running task"):
            record.msg = "not finished within the drain time, and cancelled: %s requests"
        if not isinstance(record.msg, OSError):
            return True
        causes.append(record.msg)
        return False

    logger = logging.getLogger("uvicorn.error")
    logger.addFilter(keep)
    try:
        yield causes
    finally:
        logger.removeFilter(keep)


@contextmanager
def _signals_are_no_errors() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more, for the handlers that were there before: these ignore it."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
