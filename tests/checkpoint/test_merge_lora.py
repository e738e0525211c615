"""LoRA adapters merged into their weights, against numpy in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from r1v_export.checkpoint.merge_lora import LoraMerge
from r1v_export.checkpoint.training_files import ADAPTER_CONFIG
from r1v_export.cli import main
from r1v_export.errors import CheckpointError, UsageError
from tests.checkpoint.conftest import refusal, set_key

WEIGHTS = "model.safetensors"
LINEARS = ["language_model.model.layers.0.self_attn.q_proj", "language_model.model.layers.1.mlp.down_proj"]
RANK = 4


def factors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for linear in LINEARS:
        rows, columns = tensors[f"{linear}.weight"].shape
        made[f"{linear}.lora_A"] = torch.randn(RANK, columns, generator=generator)
        made[f"{linear}.lora_B"] = torch.randn(rows, RANK, generator=generator)
    return made


def expected(weight: torch.Tensor, linear: str, made: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
    product = made[f"{linear}.lora_B"].double().numpy() @ made[f"{linear}.lora_A"].double().numpy()
    return torch.from_numpy(np.float32(weight.double().numpy() + scale * product)).to(weight.dtype)


def peft_adapter(folder: Path, made: dict[str, torch.Tensor], **changes: object) -> Path:
    folder.mkdir()
    save_file(
        {f"base_model.model.{name}.weight": tensor for name, tensor in made.items()},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none", "use_dora": False} | changes
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / RANK), (True, 6 / RANK**0.5)])
def test_an_adapter_of_peft_is_merged(tiny, tmp_path, rslora, scale):
    tensors = load_file(tiny / WEIGHTS)
    made = factors(tensors)
    adapter = peft_adapter(tmp_path / "adapter", made, use_rslora=rslora)
    merged = LoraMerge.open(tiny, adapter).write(tmp_path / "out")
    for name, tensor in tensors.items():
        linear = name.removesuffix(".weight")
        wanted = expected(tensor, linear, made, scale) if linear in LINEARS else tensor
        torch.testing.assert_close(merged.read(name), wanted, rtol=0.01, atol=0.01 if linear in LINEARS else 0)


def test_adapters_within_a_checkpoint_are_merged_with_the_published_scale(tiny, tmp_path):
    """Names as the published class saves them: peft wraps the language model and each linear that it adapts."""
    tensors = load_file(tiny / WEIGHTS)
    made = factors(tensors)

    def wrapped(name: str) -> str:
        return name.replace("language_model.", "language_model.base_model.model.", 1)

    stored = {f"{wrapped(name)}.default.weight": tensor for name, tensor in made.items()}
    for name, tensor in tensors.items():
        linear = name.removesuffix(".weight")
        stored[f"{wrapped(linear)}.base_layer.weight" if linear in LINEARS else wrapped(name)] = tensor
    save_file(stored, tiny / WEIGHTS)
    set_key(tiny, "use_llm_lora", RANK)
    assert "merge-lora" in refusal(tiny).fix
    merged = LoraMerge.open(tiny).write(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["use_llm_lora"] == 0
    for linear in LINEARS:
        weight = tensors[f"{linear}.weight"]
        torch.testing.assert_close(
            merged.read(f"{linear}.weight"), expected(weight, linear, made, 2.0), rtol=0.01, atol=0.01
        )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"r": 0}, "r"),
        ({"lora_alpha": None}, "lora_alpha"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(tiny, tmp_path, changes, key):
    adapter = peft_adapter(tmp_path / "adapter", factors(load_file(tiny / WEIGHTS)), **changes)
    with pytest.raises(CheckpointError, match=rf"{key} cannot be used"):
        LoraMerge.open(tiny, adapter)


def test_an_adapter_that_does_not_fit_is_refused(tiny, tmp_path):
    made = factors(load_file(tiny / WEIGHTS))
    first = LINEARS[0]
    with pytest.raises(CheckpointError, match="lacks one of two factors"):
        LoraMerge.open(tiny, peft_adapter(tmp_path / "one", {f"{first}.lora_A": made[f"{first}.lora_A"]}))
    short = made | {f"{first}.lora_A": made[f"{first}.lora_A"][:, :-1].contiguous()}
    with pytest.raises(CheckpointError, match="does not fit its linear"):
        LoraMerge.open(tiny, peft_adapter(tmp_path / "two", short))
    renamed = {name.replace("q_proj", "z_proj"): tensor for name, tensor in made.items()}
    with pytest.raises(CheckpointError, match="of another model"):
        LoraMerge.open(tiny, peft_adapter(tmp_path / "three", renamed))
    with pytest.raises(CheckpointError, match="no LoRA adapter"):
        LoraMerge.open(tiny)


def test_what_is_no_adapter_is_named_as_it_was_typed(tiny, tmp_path):
    file, empty = tmp_path / "file", tmp_path / "empty"
    file.write_text("")
    empty.mkdir()
    missing = "no adapter_config.json and no adapter_model.safetensors"
    for path, found in ((tmp_path / "nowhere", "no such folder"), (file, "a file"), (empty, missing)):
        with pytest.raises(CheckpointError, match="no LoRA adapter here") as caught:
            LoraMerge.open(tiny, path)
        assert (caught.value.where, caught.value.found) == (path, found)
        assert "adapter_model.safetensors" in caught.value.fix


def test_an_interruption_leaves_nothing_behind(tiny, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    adapter = peft_adapter(tmp_path / "adapter", factors(load_file(tiny / WEIGHTS)))
    with pytest.raises(KeyboardInterrupt):
        LoraMerge.open(tiny, adapter).write(tmp_path / "merged", interrupt)
    assert not (tmp_path / "merged").exists()


def test_a_missing_adapter_is_refused_before_a_stage_is_announced(tiny, tmp_path, capsys):
    assert main.run(["merge-lora", str(tiny), "--adapter", str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: There is no LoRA adapter here.")


def test_nothing_is_written_over(tiny, tmp_path):
    adapter = peft_adapter(tmp_path / "adapter", factors(load_file(tiny / WEIGHTS)))
    with pytest.raises(UsageError, match="not empty"):
        LoraMerge.open(tiny, adapter).write(tiny)
