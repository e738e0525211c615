"""A checkpoint's files in a build: known by content at its end, recognized before, and watched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1v_export.errors import CheckpointError
from r1v_export.hashed_reads import FileHash, note_read
from r1v_export.manifest import hash_file
from r1v_export.pipeline.sources import Sources
from r1v_export.pipeline.workspace import HashCache
from r1v_export.progress import Progress


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("config.json", "model.safetensors")}
    for name, path in paths.items():
        path.write_text(name)
    return paths


@pytest.fixture
def cache(tmp_path: Path) -> HashCache:
    return HashCache(tmp_path / "hashes.json")


@pytest.fixture
def sources(paths: dict[str, Path], cache: HashCache) -> Iterator[Sources]:
    with Sources(paths, cache, Progress(quiet=True)) as sources:
        yield sources


def test_files_are_known_by_what_stat_says_until_they_are_hashed(sources: Sources, paths: dict[str, Path]) -> None:
    assert sources.current(paths) == sources.identities
    expected = {name: hash_file(path) for name, path in paths.items()}
    assert sources.hashed() == expected
    assert sources.current(paths) == {name: entry.sha256 for name, entry in expected.items()}
    sources.require_unchanged()


def test_what_was_hashed_is_not_read_again_by_the_next_build(
    sources: Sources, paths: dict[str, Path], cache: HashCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sources.hashed()

    def read(file: FileHash, buffer: bytearray) -> bool:
        raise AssertionError(file.path)

    monkeypatch.setattr(FileHash, "advance", read)
    with Sources(paths, cache, Progress(quiet=True)) as again:
        assert again.contents(["config.json"]) == {"config.json": expected["config.json"].sha256}
        assert again.hashed() == expected


def test_hashes_found_before_a_build_fails_are_kept(paths: dict[str, Path], cache: HashCache) -> None:
    def fail() -> None:
        with Sources(paths, cache, Progress(quiet=True)) as sources:
            note_read(paths["model.safetensors"], 0, 17)
            with sources._hashes._changed:
                assert sources._hashes._changed.wait_for(lambda: sources._hashes.found, 60)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert cache.known(paths["model.safetensors"]) == hash_file(paths["model.safetensors"])
    assert cache.known(paths["config.json"]) is None


def test_a_file_that_was_replaced_before_its_hash_was_known_is_named(sources: Sources, paths: dict[str, Path]) -> None:
    other = paths["config.json"].with_name("other")
    other.write_text("config.json")
    other.replace(paths["config.json"])
    with pytest.raises(CheckpointError, match="changed while") as caught:
        sources.hashed()
    assert caught.value.found == "another content of config.json"


def test_a_file_that_changed_behind_its_hash_is_named(sources: Sources, paths: dict[str, Path]) -> None:
    sources.hashed()
    os.utime(paths["config.json"], ns=(0, 0))
    sources.require_unchanged()  # touched, and the same
    paths["model.safetensors"].write_text("MODEL.safetensors")
    with pytest.raises(CheckpointError, match="changed while") as caught:
        sources.require_unchanged()
    assert caught.value.found == "another content of model.safetensors"
    paths["config.json"].unlink()
    with pytest.raises(CheckpointError, match="config"):
        sources.require_unchanged()


def test_a_file_that_is_not_there_is_named(tmp_path: Path, cache: HashCache) -> None:
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        Sources({"gone": tmp_path / "gone"}, cache, Progress(quiet=True))
    assert caught.value.where == str(tmp_path / "gone")
