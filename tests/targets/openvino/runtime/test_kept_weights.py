"""Rounded weights kept between processes: the same numbers with and without them, and nobody else's are ever used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from r1v_export import contract, user_cache
from r1v_export.manifest import MANIFEST
from r1v_export.runner.kv_cache import KVCache
from r1v_export.targets.openvino import doctor
from r1v_export.targets.openvino.target import OpenVinoTarget
from r1v_export.user_cache import VARIABLE, cache_folder
from tests.targets.child_processes import SPAWN, kill_at, run_all, start
from tests.targets.openvino.conftest import NEEDS_OPENVINO, make
from tests.targets.openvino.runtime.kept_weights_cases import (
    CONTENT,
    Graph,
    make_at_once,
    make_on_a_full_disk,
    make_until_killed,
)

pytestmark = NEEDS_OPENVINO


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    from r1v_export.targets.openvino.runtime import kept_weights

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_weights, "LEAST_BYTES", 1)
    folder = cache_folder("openvino")
    assert folder is not None
    return folder


@pytest.fixture
def graph(tmp_path) -> Graph:
    return Graph(tmp_path / "bundle")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_what_one_process_makes_the_next_one_reads_and_both_have_it_mapped(graph, cache):
    from r1v_export.targets.openvino.runtime.held_weights import _mapping

    for is_first in (True, False):
        assert all(_mapping(array) is not None for array in graph.arrays())
        assert graph.were_made() is is_first
    assert names(cache) == [graph.entry().folder.name]
    assert (cache.stat().st_mode & 0o777, graph.file().stat().st_mode & 0o777) == (0o700, 0o600)


def test_the_file_can_go_while_its_arrays_are_in_use(graph):
    graph.arrays()
    arrays = graph.arrays()
    graph.file().unlink()
    np.testing.assert_array_equal(arrays[0], CONTENT["a"][0])


@pytest.mark.parametrize("what", ["file", "weights", "format"])
def test_what_was_kept_of_something_else_is_not_used_and_goes(what, graph, cache, monkeypatch):
    from r1v_export.targets.openvino.runtime import kept_weights

    graph.arrays()
    before = graph.entry().folder.name
    if what == "file":
        os.utime(graph.folder / "vision.data", ns=(0, 1))
    elif what == "weights":
        graph.weights["b"] = graph.weights["a"]
    else:
        monkeypatch.setattr(kept_weights, "_FORMAT", -1)
    graph.made.clear()
    graph.arrays()
    assert graph.were_made()
    assert names(cache) == [graph.entry().folder.name] != [before]


def test_each_rounding_of_a_graph_has_its_own(graph, cache):
    graph.arrays("int8")
    graph.arrays("bfloat16")
    graph.made.clear()
    graph.arrays("int8")
    assert not graph.were_made()
    assert len(names(cache)) == 2


@pytest.mark.parametrize("damage", ["truncated", "half", "empty", "one bit", "longer", "index", "no file"])
def test_a_damaged_file_is_never_used_and_is_written_anew(damage, graph):
    graph.arrays()
    path = graph.file()
    whole = path.read_bytes()
    broken = {
        "truncated": whole[:-1],
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "one bit": bytes([whole[0] ^ 1]) + whole[1:],
        "longer": whole + b"1",
        "index": whole[:-60] + b"?" + whole[-59:],
    }
    if damage == "no file":
        path.unlink()
    else:
        path.write_bytes(broken[damage])
    graph.made.clear()
    graph.arrays()
    assert graph.were_made()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("whose", ["folder", "file", "folder of another", "link"])
def test_what_other_users_may_write_to_is_not_trusted(whose, graph, cache, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    graph.arrays()
    path = graph.file()
    if whose == "folder":
        cache.chmod(0o777)
    elif whose == "file":
        path.chmod(0o666)
    elif whose == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for is_first in (True, False):
        graph.made.clear()
        graph.arrays()
        # A file is replaced by one's own, which is then read; a folder stays as it is.
        assert graph.were_made() is (is_first or "folder" in whose)
    if whose != "link":
        assert "other users may write to it" in caplog.text
    assert len(names(cache)) == 1


def _break_writing(monkeypatch, cache: Path, why: str) -> None:
    from r1v_export.targets.openvino.runtime import kept_weights

    if why == "no folder":
        cache.parents[1].mkdir(parents=True)
        cache.parent.touch()
    elif why == "nearly full":
        usage = user_cache.shutil.disk_usage(cache.parents[2])
        monkeypatch.setattr(user_cache.shutil, "disk_usage", lambda _: usage._replace(free=100))
    else:
        real, count = kept_weights._Writer._write, iter(range(100))

        def write(self, file, content) -> None:
            if next(count) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(self, file, content)

        monkeypatch.setattr(kept_weights._Writer, "_write", write)


@pytest.mark.parametrize("why", ["no folder", "nearly full", "full"])
def test_what_cannot_be_kept_is_made_in_memory_and_the_log_says_why(why, graph, cache, monkeypatch, caplog):
    caplog.set_level("INFO")
    _break_writing(monkeypatch, cache, why)
    graph.arrays()
    assert graph.were_made()
    assert names(cache) == []
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "nothing is kept" in record.getMessage()


def test_an_error_in_the_block_leaves_nothing_behind(graph, cache):
    from r1v_export.targets.openvino.runtime.kept_weights import keeping

    def open_it() -> None:
        with keeping(graph.entry()) as keep:
            keep("a", lambda: CONTENT["a"])
            raise KeyError

    with pytest.raises(KeyError):
        open_it()
    assert names(cache) == []


def test_two_processes_at_once_end_with_one_whole_entry_and_neither_waits(graph, cache):
    both = SPAWN.Barrier(2)
    run_all(*(start(make_at_once, graph.folder, both) for _ in range(2)))
    assert names(cache) == [graph.entry().folder.name]
    graph.arrays()
    assert not graph.were_made()


def test_what_a_killed_process_has_written_is_not_used(graph, cache):
    reached = SPAWN.Event()
    kill_at(reached, start(make_until_killed, graph.folder, reached))
    (left,) = names(cache)
    assert (cache / left / graph.file().name).stat().st_size
    for is_first in (True, False):
        graph.arrays()
        assert graph.were_made() is is_first
    assert names(cache) == sorted([left, graph.entry().folder.name])


@pytest.mark.parametrize("limit_bytes", [0, 3600, 4096])
def test_a_disk_that_gets_full_is_no_error(limit_bytes, graph, cache):
    """Nothing fits, one matrix does, or it does and what is before the next."""
    run_all(start(make_on_a_full_disk, graph.folder, limit_bytes))
    assert names(cache) == []


def test_what_is_kept_of_graphs_that_are_gone_is_removed(graph, cache, tmp_path):
    gone = Graph(tmp_path / "gone")
    gone.arrays()
    (cache / "no.weights").write_bytes(b"no index")
    (cache / ".left").touch()
    os.utime(cache / ".left", (0, 0))
    (cache / ".in-use").touch()
    gone.path.unlink()
    graph.arrays()
    assert names(cache) == [".in-use", graph.entry().folder.name]


def test_nothing_is_kept_of_few_weights_or_where_the_user_says_so(graph, monkeypatch):
    from r1v_export.targets.openvino.runtime import kept_weights

    with monkeypatch.context() as few:
        few.setattr(kept_weights, "LEAST_BYTES", 101)
        assert graph.entry() is None
    monkeypatch.setenv(VARIABLE, "off")
    assert graph.entry() is None


def test_a_gigabyte_is_reported(graph, monkeypatch, caplog):
    monkeypatch.setattr(user_cache, "REPORTED_FROM_BYTES", 1000)
    graph.arrays()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"in {graph.entry().folder}; {VARIABLE}=off keeps nothing" in record.getMessage()


def _results(opened) -> list[np.ndarray]:
    random, sizes = np.random.default_rng(1), opened.sizes
    pixels = random.standard_normal((2, 3, sizes.tile_size, sizes.tile_size), np.float32)
    features = opened.vision(pixels)
    prompt = random.standard_normal((1, 20, sizes.hidden), np.float32)
    logits = KVCache(opened.decoder(2, 32)).append(prompt, np.array([20]), 1)
    return [features, opened.projector(features), logits]


@pytest.mark.parametrize("products", ["int8", "bfloat16"])
def test_an_engine_gives_the_same_numbers_without_with_and_from_what_is_kept(
    products, r1v, tmp_path, cache, monkeypatch
):
    from r1v_export.targets.openvino.runtime import rounded_weights
    from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine

    if not doctor.has_bfloat16():
        pytest.skip("this CPU multiplies bfloat16 weights in float32")
    made = make(r1v, tmp_path / "bundle", matmul="bfloat16")

    def results(keep: bool) -> list[np.ndarray]:
        return _results(
            OpenVinoEngine(made.engine_folder, made.built.folder, made.spec.sizes, image_products=products, keep=keep)
        )

    expected = results(keep=False)
    assert names(cache) == []
    for found, wanted in zip(results(keep=True), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert len(names(cache)) == 3  # vision, projector and decoder
    for name in ("rounded", "rounded_to_int8"):
        monkeypatch.delattr(rounded_weights, name)  # nothing is rounded again
    for found, wanted in zip(results(keep=True), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_only_finished_bundles_are_kept(own):
    """A build's gate opens an engine once, at a place that it leaves."""
    assert not own.open().keep
    (own.built.folder / MANIFEST).touch()
    assert own.open().keep
    (own.built.folder / "images").mkdir()
    OpenVinoTarget().write_images(own.built.graphs, own.built.folder / "images", ("int8", "bfloat16"))
    images = OpenVinoTarget().open_images(own.built.folder / "images", own.built.folder, own.spec, "int8")
    assert images.keep
    assert contract.VISION in {path.stem for path in images.folder.iterdir()}
