"""Measured times and compiled kernels are kept in one file per library, version, GPU and, for kernels, plan."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from r1v_export import contract
from r1v_export.targets.tensorrt.build.plan import GRAPH
from r1v_export.targets.tensorrt.runtime.caches import RuntimeCache, TimingCache, file_name
from r1v_export.targets.tensorrt.runtime.decoder import TensorRTDecoder
from r1v_export.targets.tensorrt.runtime.session import Session
from tests.targets.tensorrt.conftest import Host, StandInEngine


class Config:
    """IBuilderConfig's part in it."""

    def create_timing_cache(self, content: bytes):
        return None if content == b"broken" else SimpleNamespace(serialize=lambda: content + b"+")

    def set_timing_cache(self, cache, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.cache = cache

    def get_timing_cache(self):
        return self.cache


LIBRARY = SimpleNamespace(target="tensorrt", version="11.0.0.114")


def test_a_build_begins_with_the_times_of_the_one_before(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for expected in (b"+", b"++"):
        cache, config = TimingCache(LIBRARY, config := Config()), config
        cache.save(config)
        assert cache.path.read_bytes() == expected
    assert cache.path.is_relative_to(tmp_path)


def test_a_broken_cache_is_measured_anew(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = Config()
    path = TimingCache(LIBRARY, config).path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"broken")
    TimingCache(LIBRARY, config).save(config)
    assert path.read_bytes() == b"+"


def test_versions_and_gpus_do_not_share_a_file() -> None:
    names = {
        file_name("tensorrt", version, gpu) for version in ("11.0", "11.1") for gpu in ("NVIDIA H100", "NVIDIA L4")
    }
    assert len(names) == 4
    assert not any(set(name) & set(" /") for name in names)


RTX = SimpleNamespace(target="tensorrt-rtx", version="1.7.1.116")


def plan_of(fp32, name: str) -> StandInEngine:
    return StandInEngine(fp32.engine_folder / f"{name}{GRAPH}", fp32.folder, fp32.info(name))


def test_kernels_that_the_library_refuses_are_compiled_anew(fp32, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = plan_of(fp32, contract.PROJECTOR)
    path = RuntimeCache(RTX, engine, engine.info).path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"broken")
    RuntimeCache(RTX, engine, engine.info).save()
    assert path.read_bytes() == b"+"


def test_every_context_gets_the_kernels_and_the_first_run_of_each_keeps_them(fp32, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = plan_of(fp32, contract.DECODER)
    cache = RuntimeCache(RTX, engine, engine.info)
    session = Session(engine, engine.info, Host(), "decoder", cache)
    decoder = TensorRTDecoder(session, fp32.spec.sizes, 1, 8)
    written = []
    for seq in (3, 3, 1, 1):
        embeds = np.zeros((1, seq, fp32.spec.language.hidden_size), np.float32)
        decoder.step(embeds, np.arange(seq)[None], np.array([0]), np.array([seq]), np.array([[seq - 1]]))
        written.append(cache.path.read_bytes())
    assert written == [b"+", b"+", b"++", b"++"]
    assert engine.configs == [cache.config, cache.config]


def test_a_cache_that_cannot_be_written_is_no_error(fp32, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    engine = plan_of(fp32, contract.PROJECTOR)
    RuntimeCache(RTX, engine, engine.info).save()
    assert (tmp_path / "file").read_text() == ""


def test_the_real_library_has_what_the_cache_asks_of_it(library) -> None:
    module = library.module
    assert library.compiles_kernels
    assert hasattr(module.ICudaEngine, "create_runtime_config")
    assert {"create_runtime_cache", "set_runtime_cache"} <= set(dir(module.IRuntimeConfig))
    assert {"serialize", "deserialize"} <= set(dir(module.IRuntimeCache))
