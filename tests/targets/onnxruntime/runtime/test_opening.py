"""A thread opens something, and what goes wrong in it is raised where it is first needed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from r1v_export import contract
from r1v_export.errors import BundleError
from r1v_export.runner.kv_cache import KVCache
from r1v_export.targets.onnxruntime.runtime import session
from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
from r1v_export.targets.onnxruntime.runtime.opening import Begun, Opening
from r1v_export.targets.onnxruntime.session_options import PARALLEL_PREPACK
from tests.targets.conftest import Built
from tests.targets.onnxruntime.runtime.test_optimized_graphs import Opened, entries, opened, write_graph  # noqa: F401

WAIT_S = 60


def test_who_opens_goes_on_as_soon_as_it_has_begun() -> None:
    end = threading.Event()

    def open_(begun: Begun) -> str:
        begun()
        assert end.wait(WAIT_S)
        return threading.current_thread().name

    opening = Opening(open_)
    end.set()
    assert opening.result() == opening.result() == "opening"


@pytest.mark.parametrize("begins", [False, True])
def test_what_goes_wrong_is_raised_by_the_result(begins: bool) -> None:
    def open_(begun: Begun) -> str:
        if begins:
            begun()
        raise BundleError("It is damaged.", where="there", fix="build it again")

    opening = Opening(open_)
    for _ in range(2):
        with pytest.raises(BundleError, match="It is damaged"):
            opening.result()


def logits_of(engine: OnnxRuntimeEngine) -> np.ndarray:
    embeds = np.random.default_rng(0).standard_normal((1, 5, engine.sizes.hidden)).astype(np.float32)
    return KVCache(engine.decoder(1, 64)).append(embeds, np.array([5]))


def test_a_decoder_that_was_begun_computes_the_same(r1v: Built) -> None:
    begun = r1v.open()
    begun.begin_decoder()
    np.testing.assert_array_equal(logits_of(begun), logits_of(r1v.open()))


def test_a_damaged_decoder_is_refused_at_its_first_use(copy: Built) -> None:
    (copy.engine_folder / f"{contract.DECODER}.onnx").write_bytes(b"damaged")
    engine = copy.open()
    engine.begin_decoder()
    with pytest.raises(BundleError):
        engine.cache_limits()


def test_a_session_has_begun_when_its_graph_is_read(tmp_path: Path) -> None:
    path, begun = write_graph(tmp_path / "bundle"), list[str]()
    session.open_session(path, path.parent, "cpu", 1, begun=lambda: begun.append("here"))
    assert begun == ["here"]
    path.write_bytes(b"damaged")
    with pytest.raises(BundleError):
        session.open_session(path, path.parent, "cpu", 1, begun=lambda: pytest.fail("it was not read"))


def prepacks_by_all_threads(path: Path, begun: Begun | None, keep: bool = False) -> bool:
    made = session.open_session(path, path.parent, "cpu", 1, keep=keep, begun=begun)
    return made.get_session_options().get_session_config_entry(PARALLEL_PREPACK) == "1"


def test_one_thread_prepares_few_weights_while_another_one_works(tmp_path, monkeypatch) -> None:
    path = write_graph(tmp_path / "bundle")
    assert prepacks_by_all_threads(path, begun=None)
    assert not prepacks_by_all_threads(path, begun=lambda: None)
    monkeypatch.setattr(session, "MOST_BY_ONE_THREAD_BYTES", 1000)
    assert prepacks_by_all_threads(path, begun=lambda: None)


def test_by_how_many_threads_weights_are_prepared_does_not_change_what_is_kept(opened: Opened, tmp_path) -> None:  # noqa: F811
    path = write_graph(tmp_path / "bundle")
    assert prepacks_by_all_threads(path, begun=None, keep=True)
    kept = entries()
    assert not prepacks_by_all_threads(path, begun=lambda: None, keep=True)
    assert entries() == kept
    assert opened.operators() == {"MatMulNBits", "MatMul"}
