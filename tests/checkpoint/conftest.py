"""A checkpoint small enough to be broken in every way, and the tools to break it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.errors import CheckpointError

TINY = {
    "vision_config.hidden_size": 64,
    "vision_config.num_attention_heads": 4,
    "vision_config.intermediate_size": 96,
    "llm_config.hidden_size": 64,
    "llm_config.num_attention_heads": 4,
    "llm_config.num_key_value_heads": 2,
    "llm_config.intermediate_size": 96,
}
"""Overrides of any preset for a model of a few hundred kilobytes."""


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return synthesize(folder, preset="nano", vision_layers=2, language_layers=2, overrides=TINY)


@pytest.fixture
def tiny(pristine: Path, tmp_path: Path) -> Path:
    """A good checkpoint in one file, to be broken."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A good checkpoint in three shards, to be broken."""
    return synthesize(tmp_path / "sharded", preset="nano", vision_layers=2, language_layers=2, overrides=TINY, shards=3)


def edit_json(path: Path, edit: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(edit(content) or content), encoding="utf-8")


def set_key(folder: Path, dotted: str, value: Any) -> None:
    """Set a key of config.json; `...` removes it."""

    def edit(config: dict[str, Any]) -> None:
        *parents, last = dotted.split(".")
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
        section.pop(last, None)
        if value is not ...:
            section[last] = value

    edit_json(folder / "config.json", edit)


def edit_tensors(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def refusal(folder: Path) -> CheckpointError:
    """The error that opening a broken checkpoint gives; it always says what to do."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert caught.value.fix
    return caught.value
