"""A bundle behind links gives what the bundle gives."""

from __future__ import annotations

import os
import shutil

import numpy as np
import onnx
import pytest

from r1v_export.errors import BundleError
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget


def features(folder, spec) -> np.ndarray:
    pixels = np.random.default_rng(0).standard_normal((1, 3, spec.tiling.tile_size, spec.tiling.tile_size))
    return OnnxRuntimeTarget().open(folder / "engines/onnxruntime", spec, "cpu").vision(pixels.astype(np.float32))


def link_files(copy, blobs) -> None:
    """As a hub's cache does: every file is a link to one without a name."""
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in copy.folder.rglob("*") if path.is_file())):
        path.rename(blobs / f"{number:x}")
        path.symlink_to(os.path.relpath(blobs / f"{number:x}", path.parent))


def test_files_linked_one_by_one_are_read_where_they_lie(copy, tmp_path):
    expected = features(copy.folder, copy.spec)
    link_files(copy, tmp_path / "elsewhere" / "blobs")
    np.testing.assert_array_equal(features(copy.folder, copy.spec), expected)


def test_linked_folders_are_read_where_they_lie(copy, tmp_path):
    expected = features(copy.folder, copy.spec)
    for name in ("graphs", "engines"):
        (copy.folder / name).rename(tmp_path / f"real-{name}")
        (copy.folder / name).symlink_to(tmp_path / f"real-{name}")
    np.testing.assert_array_equal(features(copy.folder, copy.spec), expected)
    linked = tmp_path / "linked"
    linked.symlink_to(copy.folder)
    np.testing.assert_array_equal(features(linked, copy.spec), expected)


def test_hard_links_are_read(copy, tmp_path):
    expected = features(copy.folder, copy.spec)
    shutil.copytree(copy.folder, tmp_path / "hard", copy_function=os.link)
    np.testing.assert_array_equal(features(tmp_path / "hard", copy.spec), expected)


def test_a_link_to_nothing_and_to_a_device_are_refused(copy):
    weights = copy.graphs / "vision.data"
    for target in ("nowhere", "/dev/zero"):
        weights.unlink()
        weights.symlink_to(target)
        with pytest.raises(BundleError, match="cannot be read"):
            features(copy.folder, copy.spec)


@pytest.mark.parametrize("location", ["../outside.data", "/etc/passwd"])
def test_a_location_outside_the_bundle_is_refused(copy, location):
    path = copy.engine_folder / "vision.onnx"
    model = onnx.load(path, load_external_data=False)
    entry = next(e for t in model.graph.initializer for e in t.external_data if e.key == "location")
    entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="outside its bundle"):
        features(copy.folder, copy.spec)
