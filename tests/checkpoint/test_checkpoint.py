"""Opening and reading a checkpoint, and everything that can be wrong with its tensors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.checkpoint.synth import synthesize
from r1v_export.reference.model import load
from tests.checkpoint.conftest import TINY, edit_tensors, refusal, set_key

WEIGHTS = "model.safetensors"
GATE = "language_model.model.layers.1.mlp.gate_proj.weight"


def test_every_tensor_is_read_as_it_is_stored(tiny):
    checkpoint, stored = Checkpoint.open(tiny), load_file(tiny / WEIGHTS)
    assert set(checkpoint.tensors) == set(stored) == set(expected_tensors(checkpoint.spec))
    for name, info in checkpoint.tensors.items():
        tensor = checkpoint.read(name)
        assert torch.equal(tensor, stored[name])
        assert (tensor.dtype, tuple(tensor.shape), tensor.nbytes) == (info.dtype, info.shape, info.nbytes)


def test_the_files_of_a_checkpoint_are_listed(tiny):
    checkpoint = Checkpoint.open(tiny)
    assert [path.name for path in checkpoint.files()] == [WEIGHTS]
    assert "tokenizer.json" in [path.name for path in checkpoint.auxiliary_files()]
    ours = {path.name for path in checkpoint.files() + checkpoint.auxiliary_files()}
    for_other_runtimes = {"configuration_skywork_chat.py"}
    assert {path.name for path in tiny.iterdir()} == ours | for_other_runtimes


def test_a_checkpoint_may_have_no_generation_config(tiny):
    assert Checkpoint.open(tiny).generation_config["eos_token_id"] == 514
    (tiny / "generation_config.json").unlink()
    assert Checkpoint.open(tiny).generation_config == {}


def test_the_reference_model_takes_the_weights_in_the_dtype_asked_for(tiny):
    checkpoint = Checkpoint.open(tiny)
    for dtype in (torch.float32, torch.bfloat16):
        weight = load(checkpoint, dtype).get_parameter(GATE)
        assert torch.equal(weight, checkpoint.read(GATE).to(dtype))


def test_a_missing_tensor_is_named(tiny):
    edit_tensors(tiny / WEIGHTS, lambda tensors: tensors.pop(GATE))
    error = refusal(tiny)
    assert error.what == "One tensor is missing."
    assert error.expected == GATE
    assert "config.json" in error.fix


def test_missing_tensors_are_listed_together_with_what_stands_in_their_place(tiny):
    def rename(tensors):
        for name in [name for name in tensors if ".layers.1." in name]:
            tensors[name.replace(".layers.1.", ".layers.7.")] = tensors.pop(name)

    edit_tensors(tiny / WEIGHTS, rename)
    error = refusal(tiny)
    assert "tensors are missing" in error.what
    assert error.expected.endswith(f"and {int(error.what.split()[0]) - 5} more")
    assert "language_model.model.layers.7." in error.found


def test_a_superfluous_tensor_is_named_with_its_file(tiny):
    edit_tensors(tiny / WEIGHTS, lambda tensors: tensors.update({"vision_model.head.weight": torch.ones(1)}))
    error = refusal(tiny)
    assert error.what == "One tensor is not part of the model."
    assert (error.where, error.found) == (WEIGHTS, "vision_model.head.weight")


def test_fewer_layers_in_the_configuration_than_in_the_file_are_noticed(tiny):
    set_key(tiny, "llm_config.num_hidden_layers", 1)
    error = refusal(tiny)
    assert "12 tensors are not part of the model" in error.what
    assert "number of layers" in error.fix


def test_vision_blocks_that_select_layer_cuts_off_may_be_stored_or_not(tiny):
    set_key(tiny, "select_layer", -2)
    block = "vision_model.encoder.layers.1."
    with_block = Checkpoint.open(tiny)
    assert not [name for name in with_block.tensors if name.startswith(block)]
    edit_tensors(
        tiny / WEIGHTS, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(block)]
    )
    assert Checkpoint.open(tiny).tensors == with_block.tensors


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tiny):
    edit_tensors(tiny / WEIGHTS, lambda tensors: tensors.update({GATE: tensors[GATE].T.contiguous()}))
    error = refusal(tiny)
    assert error.what == "One tensor is of the wrong shape."
    assert (error.expected, error.found) == (f"{GATE} [96, 64]", f"{GATE} [64, 96]")
    assert error.where == WEIGHTS


def test_a_configuration_of_another_size_shows_as_wrong_shapes(tiny):
    set_key(tiny, "llm_config.intermediate_size", 128)
    error = refusal(tiny)
    assert "6 tensors are of the wrong shape" in error.what
    assert "and 1 more" in error.found
    assert "config.json" in error.fix


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float64, torch.float8_e4m3fn, torch.bool])
def test_a_tensor_of_an_unsupported_dtype_is_named(tiny, dtype):
    edit_tensors(tiny / WEIGHTS, lambda tensors: tensors.update({GATE: tensors[GATE].to(dtype)}))
    error = refusal(tiny)
    assert error.what == "One tensor is of an unsupported dtype."
    assert error.found == f"{GATE}: {str(dtype).removeprefix('torch.')}"
    assert "bfloat16" in error.expected


def test_dtypes_may_be_mixed_and_the_main_one_counts_where_none_is_declared(tiny):
    set_key(tiny, "torch_dtype", ...)
    edit_tensors(tiny / WEIGHTS, lambda tensors: tensors.update({GATE: tensors[GATE].float()}))
    checkpoint = Checkpoint.open(tiny)
    assert checkpoint.spec.dtype == "bfloat16"
    assert checkpoint.tensors[GATE].dtype == torch.float32


def test_a_tied_head_is_the_token_embedding(tmp_path):
    synthesize(tmp_path, preset="nano", overrides=TINY | {"llm_config.tie_word_embeddings": True})
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.spec.language.tie_word_embeddings
    embedding = checkpoint.read("language_model.model.embed_tokens.weight")
    assert torch.equal(checkpoint.read("language_model.lm_head.weight"), embedding)
    model = load(checkpoint).language_model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_head_that_is_stored_is_used_even_where_the_configuration_would_tie(tiny):
    set_key(tiny, "llm_config.tie_word_embeddings", True)
    checkpoint = Checkpoint.open(tiny)
    assert not checkpoint.spec.language.tie_word_embeddings
    stored = load_file(tiny / WEIGHTS)
    assert torch.equal(checkpoint.read("language_model.lm_head.weight"), stored["language_model.lm_head.weight"])


def test_a_missing_head_is_missing_where_nothing_ties_it(tiny):
    edit_tensors(tiny / WEIGHTS, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    assert refusal(tiny).expected == "language_model.lm_head.weight"


MEASURE = """
import json, sys, torch
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.runner.bench import peak_memory_bytes as peak
small, *large = sys.argv[1:]
Checkpoint.open(small).read("mlp1.0.bias").view(torch.uint8).max()
before = peak()
for folder in large:
    checkpoint = Checkpoint.open(folder)
    for name in checkpoint.tensors:
        assert checkpoint.read(name).view(torch.uint8).max() == 0
print(json.dumps({"read": peak() - before, "largest": max(t.nbytes for t in checkpoint.tensors.values()),
                  "total": sum(t.nbytes for t in checkpoint.tensors.values())}))
"""


def test_reading_holds_no_more_than_a_few_of_the_largest_tensors(tiny, tmp_path):
    """Peak resident memory of a process that reads every tensor of a 0.3 GB checkpoint, in either layout."""
    width = {"vision_config.hidden_size": 1024, "vision_config.intermediate_size": 4096, "llm_config.hidden_size": 1024}
    sizes = {"preset": "nano", "vision_layers": 8, "language_layers": 8, "overrides": width}
    folders = [
        synthesize(tmp_path / layout, **sizes, layout=layout, weights="empty")
        for layout in ("internvl_chat", "internvl")
    ]
    command = [sys.executable, "-c", MEASURE, tiny, *folders]
    peak = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak["total"] > 30 * peak["largest"]
    assert peak["read"] < 3 * peak["largest"] + 16e6


def test_a_full_38b_checkpoint_opens_without_reading_it(tmp_path):
    checkpoint = Checkpoint.open(synthesize(tmp_path, preset="r1v3-38b", weights="empty"))
    assert sum(info.nbytes for info in checkpoint.tensors.values()) > 76e9
    assert sum(path.stat().st_blocks for path in checkpoint.files()) * 512 < 4e6
    assert checkpoint.read("language_model.model.norm.weight").shape == (5120,)
