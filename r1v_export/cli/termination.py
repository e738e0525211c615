"""SIGTERM, with which schedulers end a job: a build ends as Ctrl-C ends it, and says how it goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from r1v_export.errors import R1VError

EXIT_CODE = 128 + signal.SIGTERM


class TerminatedError(R1VError):
    """Something ended the command with SIGTERM."""

    exit_code = EXIT_CODE


class Terminated(KeyboardInterrupt):
    """SIGTERM, on its way out of whatever runs. As with Ctrl-C, no `except Exception` holds it up."""


@contextmanager
def sigterm_as_error() -> Iterator[None]:
    """Let SIGTERM unwind the command, so that locks, children and temporary files go, and end in an error.

    Raises:
        TerminatedError: SIGTERM came.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    except Terminated as error:
        raise TerminatedError(
            "Terminated by SIGTERM.", fix="run the same command again; what is finished stays, and it resumes"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the unwinding
    raise Terminated
