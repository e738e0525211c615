"""Every scale in a quantized graph is compared with the calibration's, and a wrong one is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import ParityError
from r1v_export.quantization.apply.onnx_check import require_calibrated_scales
from r1v_export.quantization.artifact.artifact import Artifact
from tests.quantization.calibration_cases import KV_RECIPE, calibrated

LINEAR = "language_model.model.layers.1.mlp.up_proj"
GROUP = "language_model.model.layers.1.mlp.gate_proj"
CACHE = "language_model.model.layers.0.self_attn"


@pytest.fixture(scope="module")
def artifact(synth_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("kv") / "out"
    calibrated(synth_checkpoint, KV_RECIPE, out, 1)
    return Artifact.open(out, synth_checkpoint)


def scales_of(artifact: Artifact) -> dict[str, np.ndarray]:
    """Some scales by the names that the Q/DQ pass gives them."""
    weight, inputs = artifact.scales(LINEAR)
    assert inputs is not None
    key = artifact.cache_scales[CACHE].key
    return {
        f"{LINEAR}.weight.T.scale": weight.numpy().copy(),
        f"{GROUP}.input_scale": inputs.numpy().copy(),
        f"{CACHE}.key.scale": np.array(key, dtype=np.float32),
    }


def write_graph(folder: Path, scales: dict[str, np.ndarray], external_data: str | None = None) -> Path:
    values = []
    for name, scale in scales.items():
        tensor = ir.tensor(scale, name=name)
        values.append(
            ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
        )
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 24}, name="decoder")
    folder.mkdir()
    model = ir.Model(graph, ir_version=11)
    ir.save(model, folder / "decoder.onnx", external_data=external_data, size_threshold_bytes=0)
    return folder


def test_the_calibrations_own_scales_pass(artifact: Artifact, tmp_path: Path) -> None:
    require_calibrated_scales(write_graph(tmp_path / "graphs", scales_of(artifact)), artifact)


def test_scales_in_a_file_with_several_hard_links_are_read(artifact: Artifact, tmp_path: Path) -> None:
    """As `deploy triton` makes them of a bundle's files; onnx_ir refuses them."""
    scales = scales_of(artifact)
    right = write_graph(tmp_path / "right", scales, "decoder.onnx.data")
    scales[f"{LINEAR}.weight.T.scale"] *= 2
    wrong = write_graph(tmp_path / "wrong", scales, "decoder.onnx.data")
    for folder in (right, wrong):
        (tmp_path / f"{folder.name}.link").hardlink_to(folder / "decoder.onnx.data")
    require_calibrated_scales(right, artifact)
    with pytest.raises(ParityError) as caught:
        require_calibrated_scales(wrong, artifact)
    assert LINEAR in caught.value.what


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        (f"{LINEAR}.weight.T.scale", LINEAR),
        (f"{GROUP}.input_scale", GROUP),
        (f"{CACHE}.key.scale", f"{CACHE}, cached keys"),
    ],
)
def test_a_scale_that_is_one_ulp_off_is_named(artifact: Artifact, tmp_path: Path, name: str, owner: str) -> None:
    scales = scales_of(artifact)
    scales[name] = np.nextafter(scales[name], np.float32(1), dtype=np.float32)
    with pytest.raises(ParityError) as caught:
        require_calibrated_scales(write_graph(tmp_path / "graphs", scales), artifact)
    assert owner in str(caught.value)
    assert name in str(caught.value.where)


def test_scales_of_another_shape_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    name = f"{LINEAR}.weight.T.scale"
    scales = scales_of(artifact) | {name: np.ones(2, dtype=np.float32)}
    with pytest.raises(ParityError, match=r"shape \(2,\)"):
        require_calibrated_scales(write_graph(tmp_path / "graphs", scales), artifact)
