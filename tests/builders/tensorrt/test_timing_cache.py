"""Measured kernel times are one file per library, version and GPU."""

from __future__ import annotations

from types import SimpleNamespace

from r1v_export.builders.tensorrt.timing_cache import TimingCache, file_name


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
