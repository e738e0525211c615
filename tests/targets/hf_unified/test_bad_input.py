"""Unified checkpoints that are not whole: refused by name as input of a build, and when a bundle's own is read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import BundleError, CheckpointError
from r1v_export.quantization.calibration.imported import import_quantized
from r1v_export.targets.hf_unified.runtime.reader import open_unified

LAYER = "language_model.model.layers.1"
LINEAR = f"{LAYER}.mlp.up_proj"
NOT_SCALES = [float("nan"), float("inf"), 0.0, -1.0]


@pytest.fixture
def damaged(chat, make, tmp_path) -> Callable[..., Path]:
    """A copy of a unified checkpoint with tensors replaced, or with None removed, and settings changed."""

    def of(recipe: str, changes: Mapping[str, torch.Tensor | None], **settings: Any) -> Path:
        folder = Path(shutil.copytree(make(chat, recipe).folder, tmp_path / "damaged"))
        tensors = load_file(folder / "model.safetensors") | changes
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors")
        config = json.loads((folder / "hf_quant_config.json").read_text())
        config["quantization"] |= settings
        (folder / "hf_quant_config.json").write_text(json.dumps(config))
        return folder

    return of


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("fp8", f"{LINEAR}.weight_scale"),
        ("fp8", f"{LINEAR}.input_scale"),
        ("int4-rtn", f"{LINEAR}.weight_scale"),
        ("fp8-kv", f"{LAYER}.self_attn.k_proj.k_scale"),
    ],
)
def test_a_missing_scale_is_named(chat, damaged, recipe, name):
    folder = damaged(recipe, {name: None})
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert LINEAR in str(caught.value) or name in str(caught.value)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        open_unified(folder, chat.spec, "cpu")


@pytest.mark.parametrize("value", NOT_SCALES)
@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("fp8", f"{LINEAR}.weight_scale"),
        ("fp8", f"{LINEAR}.input_scale"),
        ("fp8-kv", f"{LAYER}.self_attn.v_proj.v_scale"),
    ],
)
def test_a_scale_that_is_no_scale(chat, damaged, tmp_path, recipe, name, value):
    folder = damaged(recipe, {name: torch.tensor(value)})
    with pytest.raises(CheckpointError, match=r"layers\.1") as caught:
        import_quantized(Checkpoint.open(folder), tmp_path / "calibration")
    assert "positive" in caught.value.expected
    with pytest.raises(BundleError, match=rf"{name.replace('.', r'[.]')}[\s\S]*positive, finite"):
        open_unified(folder, chat.spec, "cpu")


def test_one_group_s_nan_is_enough(chat, make, damaged):
    name = f"{LINEAR}.weight_scale"
    scale = load_file(make(chat, "int4-rtn").folder / "model.safetensors")[name].clone()
    scale[3, 1] = float("nan")
    folder = damaged("int4-rtn", {name: scale})
    with pytest.raises(CheckpointError, match="1 that are not"):
        Checkpoint.open(folder).read(f"{LINEAR}.weight")
    with pytest.raises(BundleError, match="positive, finite"):
        open_unified(folder, chat.spec, "cpu")


def test_a_linear_in_16_bits_that_also_has_scales(chat, damaged):
    weight = chat.read(f"{LINEAR}.weight")
    folder = damaged("int4-rtn", {f"{LINEAR}.weight": weight})
    with pytest.raises(CheckpointError, match=rf"both quantized and unquantized[\s\S]*{LINEAR}[\s\S]*bfloat16"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("algorithm", ["NVFP4", "W4A16_MAGIC"])
def test_an_unknown_algorithm_is_named_with_those_that_are_known(damaged, algorithm):
    folder = damaged("fp8", {}, quant_algo=algorithm)
    with pytest.raises(CheckpointError, match=rf"quant_algo[\s\S]*FP8[\s\S]*W4A8_AWQ[\s\S]*{algorithm}"):
        Checkpoint.open(folder)


def test_a_cache_of_an_unknown_type_is_named(damaged):
    folder = damaged("fp8-kv", {}, kv_cache_quant_algo="NVFP4")
    with pytest.raises(CheckpointError, match=r"kv_cache_quant_algo[\s\S]*FP8[\s\S]*NVFP4"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["hf_quant_config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(source, make, tmp_path, name):
    written = make(source, "fp8")
    for path in written.folder.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BundleError, match="cannot be used"):
        open_unified(tmp_path, source.spec, "cpu")
