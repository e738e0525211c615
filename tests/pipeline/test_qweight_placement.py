"""Quantized values that a calibration stores lie in a bundle once, where its graphs or its checkpoint look for them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors import safe_open

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.errors import BundleError
from r1v_export.pipeline.build import build
from r1v_export.pipeline.calibrate import calibrate_alone
from r1v_export.pipeline.calibration import CALIBRATION, finished_digest, open_artifact
from r1v_export.pipeline.stages import Build
from r1v_export.pipeline.verify import verify_bundle
from r1v_export.progress import Progress
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.groups import linear_shapes
from r1v_export.quantization.sizes import weight_bytes
from r1v_export.targets import registry

LINEAR = "language_model.model.layers.0.mlp.up_proj"
FILE = "language_model.model.layers.0.safetensors"
HUB_TARGETS = ("hf-unified", "compressed-tensors")
PLACES = {"onnxruntime": "graphs/qweight", **{target: f"engines/{target}" for target in HUB_TARGETS}}


def config_for(tiny: BuildConfig, *targets: str, artifact: Path | None = None) -> BuildConfig:
    calibration = CalibrationConfig(artifact=str(artifact)) if artifact else CalibrationConfig(samples=2)
    changes = {"precision": "int4", "calibration": calibration, "targets": {name: {} for name in targets}}
    return tiny.model_copy(update=changes)


@pytest.fixture(scope="module")
def finished(tiny_config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same calibration, of no bundle."""
    out = tmp_path_factory.mktemp("finished") / "calibration"
    calibrate_alone(config_for(tiny_config), out, progress=Progress(quiet=True))
    return out


@pytest.fixture(scope="module", params=PLACES)
def bundle(request: pytest.FixtureRequest, tiny_config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(config_for(tiny_config, request.param), tmp_path_factory.mktemp("placed") / request.param).out


def artifact_of(bundle: Path, tiny_model: Path) -> Artifact:
    artifact = open_artifact(bundle, Checkpoint.open(tiny_model))
    assert artifact is not None
    return artifact


def qweight_of(artifact: Artifact) -> dict[str, np.ndarray]:
    return {name: linear.qweight.numpy() for name, linear in artifact.linears()}


def test_the_calibration_names_files_where_the_target_looks_and_reads_them_as_its_own(
    bundle: Path, finished: Path, tiny_model: Path
) -> None:
    places = json.loads((bundle / CALIBRATION / "qweight.json").read_text())
    assert places == {"files": [f"{PLACES[bundle.name]}/{FILE}"]}
    assert not (bundle / CALIBRATION / "qweight").exists()
    assert (finished / "qweight").is_dir()
    expected = qweight_of(Artifact.open(finished, Checkpoint.open(tiny_model)))
    found = qweight_of(artifact_of(bundle, tiny_model))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    verify_bundle(bundle, Progress(quiet=True))


def test_the_graph_and_onnx_itself_find_the_values_there(
    tiny_config: BuildConfig, tiny_model: Path, tmp_path: Path
) -> None:
    bundle = build(config_for(tiny_config, "onnxruntime"), tmp_path / "out").out
    name = f"{LINEAR}.weight.T.qweight"
    stored = ir.load(bundle / "graphs" / "decoder.onnx").graph.initializers[name].const_value
    assert isinstance(stored, ir.ExternalTensor)
    assert stored.location == f"qweight/{FILE}"
    (tensor,) = (t for t in onnx.load(bundle / "graphs" / "decoder.onnx").graph.initializer if t.name == name)
    values_IO = onnx.numpy_helper.to_array(tensor).astype(np.int8)
    assert np.array_equal(values_IO.T, artifact_of(bundle, tiny_model).linear(LINEAR).qweight)


@pytest.mark.parametrize("target", HUB_TARGETS)
def test_a_checkpoint_has_the_tensors_that_it_has_with_values_of_its_own(
    target: str, tiny_config: BuildConfig, tmp_path: Path
) -> None:
    """A second target stores its own."""
    once = build(config_for(tiny_config, target), tmp_path / "once").out / "engines" / target
    twice = build(config_for(tiny_config, "onnxruntime", target), tmp_path / "twice").out / "engines" / target
    assert (once / FILE).is_file()
    assert not (twice / FILE).exists()
    index = json.loads((once / "model.safetensors.index.json").read_text())
    found, expected = tensors_of(once), tensors_of(twice)
    assert index["weight_map"].keys() == found.keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(len(content) for _, _, content in expected.values())
    assert found == expected


INT8_GPTQ = """
name: int8-gptq
description: INT8 by GPTQ.
rules:
  - modules: ["language_model.model.layers.*"]
    scheme:
      weights: {algorithm: gptq, type: int8, granularity: channel}
      inputs: {type: int8, mode: static}
"""


def test_values_of_8_bits_lie_once_in_a_compressed_checkpoint(tiny_config: BuildConfig, tmp_path: Path) -> None:
    """With ONNX graphs first, these have the calibration's, and the checkpoint its own."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(INT8_GPTQ)
    changes = {"precision": "int8", "recipe": str(recipe)}
    once, twice = (
        build(config_for(tiny_config, *targets).model_copy(update=changes), tmp_path / str(len(targets))).out
        for targets in (("compressed-tensors",), ("onnxruntime", "compressed-tensors"))
    )
    assert not (once / CALIBRATION / "qweight").exists()
    folder = Path("engines", "compressed-tensors")
    with safe_open(once / folder / FILE, framework="pt") as file:
        assert file.get_slice(f"{LINEAR}.weight").get_dtype() == "I8"
    assert not (twice / folder / FILE).exists()
    assert tensors_of(once / folder) == tensors_of(twice / folder)
    verify_bundle(once, Progress(quiet=True))


def tensors_of(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes of every tensor, by the safetensors library."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor, stored = file.get_tensor(name), file.get_slice(name)
                content = tensor.contiguous().flatten().view(dtype=torch.uint8).numpy().tobytes()
                found[name] = (stored.get_dtype(), list(tensor.shape), content)
    return found


def test_another_target_later_runs_no_calibration(bundle: Path, tiny_config: BuildConfig, tiny_model: Path) -> None:
    other = next(target for target in PLACES if target != bundle.name)
    before = qweight_of(artifact_of(bundle, tiny_model))
    built = build(config_for(tiny_config, other), bundle)
    assert "calibration" not in built.ran
    after = qweight_of(artifact_of(bundle, tiny_model))
    assert all(np.array_equal(after[name], before[name]) for name in before)
    verify_bundle(bundle, Progress(quiet=True))
    assert build(config_for(tiny_config, bundle.name), bundle).ran != (), "for the tests behind"


@pytest.fixture(scope="module")
def built_from_finished(tiny_config: BuildConfig, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        config_for(tiny_config, "onnxruntime", artifact=finished), tmp_path_factory.mktemp("from") / "finished"
    ).out


def test_a_finished_calibration_gives_the_same_files_wherever_its_values_were(
    bundle: Path,
    built_from_finished: Path,
    tiny_config: BuildConfig,
    tmp_path: Path,
    tree: Callable[[Path], dict[str, bytes]],
) -> None:
    config = config_for(tiny_config, "onnxruntime", artifact=bundle / CALIBRATION)
    out = build(config, tmp_path / "out").out
    first, second = tree(out), tree(built_from_finished)
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {"manifest.json"}, "the calibration's digest"
    assert (out / PLACES["onnxruntime"] / FILE).stat().st_nlink == 1, "onnx refuses weights with several hard links"


def test_the_digest_of_a_calibration_follows_values_that_lie_elsewhere(bundle: Path) -> None:
    path = bundle / PLACES[bundle.name] / FILE
    before, content = finished_digest(str(bundle / CALIBRATION)), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert finished_digest(str(bundle / CALIBRATION)) != before
    path.write_bytes(content)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/passwd", 3])
def test_a_place_outside_of_the_bundle_is_refused(
    place: object, bundle: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle / CALIBRATION / "qweight.json"
    text = path.read_text()
    path.write_text(json.dumps({"files": [place]}))
    with pytest.raises(BundleError, match=r"qweight.json is invalid"):
        artifact_of(bundle, tiny_model)
    path.write_text(text)


@pytest.mark.parametrize("target", [*PLACES, "tensorrt-llm"])
def test_the_plan_counts_values_once_where_the_target_can_refer_to_them(
    target: str, tiny_config: BuildConfig, tiny_model: Path, tmp_path: Path
) -> None:
    config = registry.resolved(config_for(tiny_config, target))
    job = Build(config, Checkpoint.open(tiny_model), tmp_path)
    rows = {stage.name: stage.size_bytes for stage in job.stages()}
    spec, schemes = job.checkpoint.spec, job.schemes
    whole = registry.get_target(target).size_bytes(config, spec, schemes) if target != "onnxruntime" else None
    user = f"{target}-engine" if whole is not None else "decoder-graph"
    whole = weight_bytes(spec, schemes, job.compute)["decoder"] if whole is None else whole
    values = sum(math.prod(linear_shapes(spec)[name]) // 2 for name in schemes)
    assert values > 0
    assert rows["calibration"] > values
    assert rows[user] == whole - (values if target in PLACES else 0)
