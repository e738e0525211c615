"""OpenVINO leaves the stack of signals as it was."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from r1v_export.targets.openvino.signal_stack import _Stack, kept_signal_stack

COUNT = Path(__file__).parents[3] / "examples/images/06-count.png"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layout of Linux")

ASK = """
import ctypes, sys
from pathlib import Path
from r1v_export.runner.open_runner import open_runner
from r1v_export.targets.openvino.signal_stack import _Stack
open_runner(Path(sys.argv[1]), vision_target="openvino").ask("How many objects do you see?", Path(sys.argv[2]))
found = _Stack()
ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
print(found.base)
"""


def base() -> int | None:
    found = _Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    value: int | None = found.base
    return value


def test_the_stack_before_is_set_again() -> None:
    before, memory = base(), ctypes.create_string_buffer(1 << 16)
    with kept_signal_stack():
        other = _Stack(ctypes.addressof(memory), 0, len(memory))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(other), None) == 0
        assert base() == ctypes.addressof(memory)
    assert base() == before


def test_checking_the_operator_leaves_the_stack_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server does so in its main thread."""
    pytest.importorskip("openvino")
    from r1v_export.targets.openvino.runtime import paged_attention

    before, memory = base(), ctypes.create_string_buffer(1 << 16)

    def sets_another(*_: object) -> float:
        other = _Stack(ctypes.addressof(memory), 0, len(memory))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(other), None) == 0
        return 0.0

    monkeypatch.setattr(paged_attention, "_difference", sets_another)
    check = paged_attention.require_paged_attention.__wrapped__  # without what it remembers
    check(1, 8, paged_attention.Attention("f32", "f32"))
    assert base() == before


def test_an_answer_with_images_by_openvino_leaves_the_stack_alone(nano_bundle: Path) -> None:
    pytest.importorskip("openvino")
    printed = subprocess.check_output([sys.executable, "-c", ASK, str(nano_bundle), str(COUNT)], text=True)
    assert printed == "None\n"
