"""The stack on which a thread handles signals, which OpenVINO's threading library replaces by one that it frees later.

Python handles Ctrl-C on that stack. Once it is freed, a signal ends the process with a segmentation fault.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of sigaltstack(2), as Linux has it."""

    _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_sigaltstack = ctypes.CDLL(None).sigaltstack if sys.platform == "linux" else None


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give the thread the signal stack back that it had before; elsewhere than on Linux, nothing."""
    if _sigaltstack is None:
        yield
        return
    before = _Stack()
    known = _sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            _sigaltstack(ctypes.byref(before), None)
