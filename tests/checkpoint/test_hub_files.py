"""What other runtimes need next to the weights, read by transformers as they read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import r1v_export
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.hub_files import CODE, readable_config, write_configuration_code
from r1v_export.checkpoint.presets import PRESETS
from r1v_export.checkpoint.synth import synthesize
from tests.checkpoint.conftest import TINY

NANO = Path(r1v_export.__file__).parent / "nano/model"

READ_BY_TRANSFORMERS = """
import json, sys
from transformers import AutoConfig, AutoTokenizer
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
messages = [{"role": "user", "content": "How many?"}]
print(json.dumps({
    "model_type": config.model_type,
    "architectures": config.architectures,
    "language": [type(config.llm_config).__name__, config.get_text_config().num_hidden_layers],
    "vision": config.vision_config.num_hidden_layers,
    "ps_version": config.ps_version,
    "prompt": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
}))
"""


def read_by_transformers(folder: Path, cache: Path) -> dict:
    """In a process of its own: it copies the configuration's code into its cache, and imports it from there."""
    environment = os.environ | {"HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", READ_BY_TRANSFORMERS, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_transformers_loads_the_configuration_that_ships_with_r1v_nano(tmp_path: Path):
    read = read_by_transformers(NANO, tmp_path)
    assert read["architectures"] == ["SkyworkR1VChatModel"]
    assert (read["model_type"], read["ps_version"]) == ("skywork_chat", "v2")
    assert (read["language"], read["vision"]) == (["Qwen2Config", 4], 4)
    assert read["prompt"] == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n<think>\n"


@pytest.mark.parametrize(
    ("preset", "model_type", "prompt"),
    [
        ("r1v1-38b", "skywork_chat", "<｜User｜>\nHow many?<｜Assistant｜><think>\n"),
        ("internvl3-1b", "internvl_chat", "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_transformers_loads_what_synth_writes(tmp_path: Path, preset: str, model_type: str, prompt: str):
    folder = synthesize(tmp_path / "model", preset=preset, vision_layers=1, language_layers=2, overrides=TINY)
    read = read_by_transformers(folder, tmp_path / "cache")
    assert read["model_type"] == model_type
    assert (read["vision"], read["language"][1]) == (1, 2)
    assert read["prompt"] == prompt


def test_the_shipped_code_is_the_file_that_every_checkpoint_gets():
    assert (NANO / "configuration_skywork_chat.py").read_bytes() == CODE.read_bytes()


@pytest.mark.parametrize("preset", PRESETS)
def test_an_auto_map_names_a_file_that_is_there_and_leaves_the_template_as_it_was(tmp_path: Path, preset: str):
    folder = synthesize(tmp_path, preset=preset, vision_layers=1, language_layers=1, weights="empty")
    config = json.loads((folder / "config.json").read_text())
    module, name = config["auto_map"]["AutoConfig"].split(".")
    assert f"class {name}(" in (folder / f"{module}.py").read_text()
    chosen = Checkpoint.open(folder).spec.template
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": None}))
    assert Checkpoint.open(folder).spec.template == chosen


def test_the_native_layout_needs_no_code(tmp_path: Path):
    folder = synthesize(tmp_path, preset="nano", layout="internvl", weights="empty")
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert not list(folder.glob("*.py"))


def test_an_auto_map_of_the_checkpoints_own_files_is_replaced(tmp_path: Path):
    published = {
        "architectures": ["SkyworkChatModel"],
        "model_type": "skywork_chat",
        "auto_map": {"AutoModel": "modeling_skywork_chat.SkyworkChatModel"},
    }
    config = readable_config(published)
    write_configuration_code(tmp_path, config)
    assert config["architectures"] == ["SkyworkR1VChatModel"]
    assert config["auto_map"] == {"AutoConfig": "configuration_skywork_chat.SkyworkChatConfig"}
    assert [path.name for path in tmp_path.iterdir()] == ["configuration_skywork_chat.py"]
