"""Arrays in memory and in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from r1v_export.parity.activation_store import ActivationStore


@pytest.mark.parametrize("limit_bytes", [0, 100, 1 << 20])
def test_the_latest_array_of_a_key_comes_back_wherever_it_is_kept(limit_bytes: int, tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "spilled", limit_bytes)
    arrays = {("own", index): np.full((3, index + 1), index, dtype=np.float32) for index in range(8)}
    for factor in (1, 2):
        for key, array in arrays.items():
            store.put(key, factor * array)
        for key, array in arrays.items():
            np.testing.assert_array_equal(store.get(key), factor * array)
    assert (tmp_path / "spilled").exists() == (limit_bytes < 1 << 20)


def test_memory_that_a_smaller_array_frees_is_used_again(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "spilled", 400)
    store.put("a", np.zeros(100, dtype=np.float32))
    store.put("a", np.zeros(50, dtype=np.float32))
    store.put("b", np.zeros(50, dtype=np.float32))
    assert not (tmp_path / "spilled").exists()


def test_a_file_goes_when_its_key_is_held_again(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, 100)
    for key in ("a", "b"):
        store.put(key, np.zeros(100, dtype=np.float32))
    store.put("a", np.zeros(20, dtype=np.float32))
    assert len(list(tmp_path.iterdir())) == 1
    store.put("c", np.ones(100, dtype=np.float32))
    assert not store.get("b").any()
    assert store.get("c").all()


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        ActivationStore(tmp_path, 100).get("nothing")
