"""Two bundles side by side: what differs is found, and what is equal is said to be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r1v_export.bundle import Bundle
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.diff.compare import BundleDiff, compare_bundles
from r1v_export.diff.tensors import _differing
from r1v_export.manifest import hash_file
from r1v_export.pipeline.build import build
from r1v_export.targets.images import named_pair


@pytest.fixture(scope="module")
def diff(nano_bundle: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> BundleDiff:
    """The shipped model in float32, with its gate, and in int4 without."""
    config = BuildConfig(precision="int4", recipe="int4-rtn", parity=ParityConfig(enabled=False))
    quantized = made_once("diff-int4", lambda out: build(config, out))
    return compare_bundles(Bundle.open(nano_bundle), Bundle.open(quantized))


def test_a_bundle_equals_itself(nano_bundle: Path) -> None:
    bundle = Bundle.open(nano_bundle)
    found = compare_bundles(bundle, bundle)
    assert found.equal
    assert found.tensor is None
    assert found.files.equal == len(bundle.manifest.files)


def test_settings_sizes_and_verdicts_stand_side_by_side(diff: BundleDiff) -> None:
    rows = {title: {row.name: row for row in table} for title, table in diff.tables.items()}
    assert (rows["settings"]["precision"].first, rows["settings"]["precision"].second) == ("fp32", "int4")
    assert rows["settings"]["model"].equal
    assert all(row.equal for title in ("source", "tools") for row in diff.tables[title])
    assert list(rows["sizes"]) == ["all", "documents", *sorted(rows["sizes"].keys() - {"all", "documents"})]
    assert rows["sizes"]["calibration"].first is None
    assert rows["sizes"]["engines/onnxruntime"].first > 0
    assert rows["parity"]["onnxruntime: gate"].second == "omitted (--no-parity)"
    assert rows["parity"]["onnxruntime, arithmetic: token_agreement"].first == 1.0
    assert not diff.equal
    assert "model.json" not in diff.files.differing
    assert "calibration/scales.safetensors" in diff.files.second_only


def test_verdicts_of_pairs_of_engines_stand_next_to_those_of_engines(nano_bundle: Path) -> None:
    bundle = Bundle.open(nano_bundle)
    images, decoder = (named_pair("onnxruntime", **{what: "openvino"}) for what in ("images", "decoder"))
    update = {"image_parity": {images: "passed"}, "decoder_parity": {decoder: "failed"}}
    found = compare_bundles(bundle, replace(bundle, manifest=bundle.manifest.model_copy(update=update)))
    second = {row.name: row.second for row in found.tables["parity"]}
    assert (second[f"{images}: gate"], second[f"{decoder}: gate"]) == ("passed", "failed")


def test_the_first_tensor_is_that_of_the_first_graph_that_is_quantized(diff: BundleDiff) -> None:
    assert diff.tensor is not None
    assert (diff.tensor.file, diff.tensor.second) == ("graphs/decoder.onnx", "not there")
    assert diff.tensor.first.startswith("FLOAT [")
    assert diff.tensor.differing is None


def test_one_changed_value_is_found(nano_bundle: Path, tmp_path: Path) -> None:
    """In a copy whose manifest names the changed file's hash, as after a build of a changed checkpoint."""
    copy, weights = Path(shutil.copytree(nano_bundle, tmp_path / "copy")), "graphs/vision.data"
    with (copy / weights).open("r+b") as file:
        file.write(b"\x00\x00\x80\x40")  # 4.0
    bundle = Bundle.open(copy)
    for stage in bundle.manifest.stages.values():
        if weights in stage.files:
            stage.files[weights] = hash_file(copy / weights)
    found = compare_bundles(Bundle.open(nano_bundle), bundle)
    assert found.files.differing == (weights,)
    assert found.tensor is not None
    assert (found.tensor.file, found.tensor.differing) == ("graphs/vision.onnx", 1)
    assert found.tensor.max_abs_difference is not None
    assert 3 < found.tensor.max_abs_difference < 5


@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_are_compared_without_their_distance() -> None:
    inf, nan = np.inf, np.nan
    assert _differing(np.array([inf, nan, -inf, 1.0]), np.array([inf, nan, -inf, 1.0])) is None
    assert _differing(np.array([inf, nan, 1.0, 2.0]), np.array([-inf, 1.0, 1.0, 2.5])) == (3, 4, 0.5)
