"""Where targets keep what they would work out again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from r1v_export.targets import user_cache


def test_the_folder_is_the_users_and_a_user_without_a_home_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache.cache_folder("openvino") == tmp_path / "r1v-export" / "openvino"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(user_cache.Path, "home", homeless)
    assert user_cache.cache_folder("openvino") is None


@pytest.mark.parametrize(("value", "off"), [("off", True), ("on", False), (None, False)])
def test_the_user_can_switch_it_off(monkeypatch, value, off):
    monkeypatch.delenv(user_cache.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(user_cache.VARIABLE, value)
    assert user_cache.is_off() is off


def test_a_quarter_of_the_free_space_is_taken_at_most(monkeypatch, tmp_path):
    usage = user_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(user_cache.shutil, "disk_usage", lambda _: usage._replace(free=400))
    assert user_cache.fits(100, tmp_path)
    assert not user_cache.fits(101, tmp_path)


def test_a_file_that_is_written_again_has_another_state(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"1234")
    before = user_cache.file_states([path])
    assert user_cache.file_states([path]) == before
    os.utime(path, ns=(0, 1))
    assert user_cache.file_states([path]) != before
