"""A thread opens something, and what goes wrong in it is raised where it is first needed."""

from __future__ import annotations

import os
import threading

import pytest

from r1v_export.errors import BundleError
from r1v_export.opening import Begun, Opening, is_opening

WAIT_S = 60


def test_who_opens_goes_on_as_soon_as_it_has_begun() -> None:
    end = threading.Event()

    def open_(begun: Begun) -> str:
        begun()
        assert end.wait(WAIT_S)
        return threading.current_thread().name

    opening = Opening(open_)
    assert is_opening()
    end.set()
    assert opening.result() == "opening"
    assert not is_opening()


@pytest.mark.parametrize("begins", [False, True])
def test_what_goes_wrong_is_raised_by_the_result(begins: bool) -> None:
    def open_(begun: Begun) -> str:
        if begins:
            begun()
        raise BundleError("It is damaged.", where="there", fix="build it again")

    opening = Opening(open_)
    with pytest.raises(BundleError, match="It is damaged"):
        opening.result()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_knows_that_the_thread_is_not_its_own() -> None:
    opening = Opening(lambda begun: "open")
    child = os.fork()
    if child == 0:
        os._exit(int(opening.is_here))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert opening.is_here
