"""Ctrl-C: it is answered at once, also while a library computes, and it ends the process without delay."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from r1v_export.cli.logs import json_on_stderr, log_note

STOPPING = "stopping: the computation that runs has to end first"

_PATIENCE_S = 0.3
"""A command that reacts to Ctrl-C within this time says itself that it stops."""
_AGAIN_S = 0.05
"""After which an interrupt that was ignored is repeated."""


@contextmanager
def answered_interrupts() -> Iterator[None]:
    """Say on stderr that Ctrl-C was noticed, where the command does not react to it by itself, and let none get lost.

    Python raises `KeyboardInterrupt` only where the main thread runs Python, not within a call into a library, such as
    the compilation of a graph. It ignores one in a callback of a weak reference or in `__del__`: after a graph was
    traced, torch's are most of what runs when a large file is read.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # signals are the main thread's, and a caller's own handler stays
        return
    reacted, lost = threading.Event(), list[type[BaseException]]()

    def react(_number: int, _frame: object) -> NoReturn:
        reacted.set()
        raise lost.pop() if lost else KeyboardInterrupt

    def repeat(ignored: sys.UnraisableHookArgs) -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            hook_before(ignored)
            return
        # In a callback of a garbage collector, where Python ignores what is raised: try again behind it.
        lost.append(ignored.exc_type)
        threading.Timer(_AGAIN_S, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    hook_before, sys.unraisablehook = sys.unraisablehook, repeat
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, react)
    thread = threading.Thread(target=_watch, args=(reader, reacted, react), name="interrupts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.unraisablehook = hook_before
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join(_PATIENCE_S)
        if not thread.is_alive():
            os.close(reader)


def _watch(reader: int, reacted: threading.Event, react: Callable[[int, object], NoReturn]) -> None:
    """Read the numbers of signals, which are written when they come, whatever the main thread does."""
    while number := os.read(reader, 1):
        if number[0] != signal.SIGINT or signal.getsignal(signal.SIGINT) is not react:
            continue  # a server, which has its own handler, says itself what it does
        if not reacted.wait(_PATIENCE_S):
            with suppress(OSError, ValueError):
                _announce()
        reacted.clear()


def _announce() -> None:
    """Say on stderr that the command stops, over the line that shows progress, or as an event of a JSON log."""
    if json_on_stderr():
        log_note(STOPPING)
        return
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{clear}{STOPPING}\n")
    sys.stderr.flush()


def leave_at_once(exit_code: int) -> NoReturn:
    """End the process as it is: taking libraries apart takes seconds, for which whoever interrupted it would wait.

    Temporary folders and logs are closed. What threads still do is not waited for.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)
