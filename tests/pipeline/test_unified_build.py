"""The target hf-unified from the command's configuration to the arithmetic gate, which notices one wrong scale."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.parity.comparison import check
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.schema import ParityReport
from r1v_export.pipeline.build import build
from r1v_export.pipeline.calibration import open_artifact
from r1v_export.pipeline.parity_gate import GeneratedQuestions, candidate_endpoint, reference_endpoint


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the gates of the build: what quantizing costs random weights may be too much."""
    fields = {"precision": "int4", "recipe": "int4-rtn", "targets": {"hf-unified": {}}}
    config = BuildConfig(model=str(tiny_model), parity=ParityConfig(enabled=False), **fields)
    return build(config, tmp_path_factory.mktemp("unified") / "out").out


def test_the_folder_is_a_checkpoint_of_its_own(bundle: Path) -> None:
    checkpoint = Checkpoint.open(bundle / "engines" / "hf-unified")
    assert checkpoint.quantized is not None
    assert len(checkpoint.quantized.linears) == 7
    assert not (bundle / "graphs").exists()


def test_one_wrong_scale_does_not_pass_the_gate(bundle: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert _numerics(bundle, tiny_model).passed
    broken = Path(shutil.copytree(bundle, tmp_path / "broken"))
    weights = broken / "engines" / "hf-unified" / "model-00001-of-00001.safetensors"
    tensors = load_file(weights)
    tensors["language_model.model.layers.0.mlp.up_proj.weight_scale"][3, 0] *= 2
    save_file(tensors, weights)
    report = _numerics(broken, tiny_model)
    assert report.first_bad == "prefill"


def _numerics(bundle: Path, model: Path) -> ParityReport:
    checkpoint = Checkpoint.open(model)
    reference = reference_endpoint(checkpoint, "cpu", open_artifact(bundle, checkpoint))
    samples, candidate = GeneratedQuestions(checkpoint, 1), candidate_endpoint(bundle, "hf-unified", "cpu")
    return check(reference, candidate, samples, CheckOptions("int4", max_new_tokens=4))
