"""What training leaves in a checkpoint's folder: read without it, or refused by its name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from tests.checkpoint.conftest import edit_tensors, refusal

WEIGHTS = "model.safetensors"
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"


def rename(path, new_name):
    save_file({new_name(name): tensor for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("new_name", "prefix"),
    [
        (lambda name: f"module.{name}", "module."),
        (lambda name: f"_orig_mod.{name}", "_orig_mod."),
        (lambda name: f"module._orig_mod.{name}", "module. and _orig_mod."),
        (lambda name: name.replace("language_model.", "language_model._orig_mod."), "_orig_mod."),
    ],
)
def test_wrappers_prefixes_are_taken_off_and_named(tiny, new_name, prefix):
    expected = load_file(tiny / WEIGHTS)
    rename(tiny / WEIGHTS, new_name)
    checkpoint = Checkpoint.open(tiny)
    assert checkpoint.warnings == (f"tensor names are read without the prefix {prefix} of a training wrapper",)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in expected.items())


def test_a_tensor_with_and_without_its_prefix_is_refused(tiny):
    name = "mlp1.0.bias"
    edit_tensors(tiny / WEIGHTS, lambda tensors: tensors.update({f"_orig_mod.{name}": tensors[name].clone()}))
    assert refusal(tiny).found == name


@pytest.mark.parametrize(
    "added",
    [
        [f"{Q_PROJ}.lora_A.weight", f"{Q_PROJ}.lora_B.weight"],
        [f"base_model.model.{Q_PROJ}.lora_A.default.weight"],
        [f"{Q_PROJ}.base_layer.weight"],
    ],
)
def test_an_adapter_that_is_not_merged_is_named_with_its_cure(tiny, added):
    edit_tensors(tiny / WEIGHTS, lambda tensors: tensors.update({name: torch.ones(4, 4) for name in added}))
    error = refusal(tiny)
    assert "LoRA adapter that is not merged" in error.what
    assert error.found == ", ".join(added)
    assert "merge" in error.fix


def test_a_folder_with_an_adapter_alone_is_named(tiny):
    (tiny / "config.json").unlink()
    (tiny / WEIGHTS).rename(tiny / "adapter_model.safetensors")
    (tiny / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    assert refusal(tiny).what == "The folder holds a LoRA adapter, not a model."


SIDE_FILES = ["adapter_model.safetensors", "consolidated.00.safetensors", "optimizer.pt", "training_args.bin"]


@pytest.mark.parametrize("name", [*SIDE_FILES, "adapter_config.json"])
def test_files_next_to_a_whole_model_are_ignored_and_named(tiny, sharded, name):
    for folder in (tiny, sharded):
        (folder / name).write_bytes(b"{}")
        checkpoint = Checkpoint.open(folder)
        assert checkpoint.warnings == (f"files that are no part of the model: {name}",)
        assert name not in {path.name for path in (*checkpoint.files(), *checkpoint.auxiliary_files())}


@pytest.mark.parametrize("value", [True, "0", [0.5], [None], [[496]], [640], -1], ids=repr)
def test_an_eos_token_id_of_another_kind_is_refused_when_the_checkpoint_opens(tiny, value):
    path = tiny / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": value}))
    error = refusal(tiny)
    assert error.what == "The eos_token_id cannot be used."
    assert error.expected == "an id from 0 to 639, or a list of ids"
