"""What other runtimes need next to the weights of an `internvl_chat` checkpoint: transformers has no class for it.

config.json names a configuration class of a file next to it (`auto_map`), which runtimes load with `trust_remote_code`.
The file is `hub_code/configuration_chat.py`, ours; nothing here runs it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1v_export.checkpoint.config import ARCHITECTURES
from r1v_export.model_spec import IMAGENET_MEAN, IMAGENET_STD

CONFIG = "config.json"
CODE = Path(__file__).parent / "hub_code" / "configuration_chat.py"
_CLASSES = {
    "skywork_chat": "configuration_skywork_chat.SkyworkChatConfig",
    "internvl_chat": "configuration_internvl_chat.InternVLChatConfig",
}
"""`model_type` -> the class in `auto_map`. A file name with `skywork` in it would make an InternVL a Skywork."""

_HUB_ARCHITECTURES = {"skywork_chat": "SkyworkR1VChatModel", "internvl_chat": "InternVLChatModel"}
"""`model_type` -> the architecture that the hub and vLLM know."""


def readable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the architecture and the `auto_map` that other runtimes read it by.

    In transformers' own `internvl` layout it is returned unchanged. An `auto_map` of the checkpoint's own Python
    files is replaced: they are not copied.
    """
    model_type = _chat_type(config)
    if model_type is None:
        return dict(config)
    return {
        **config,
        "architectures": [_HUB_ARCHITECTURES[model_type]],
        "auto_map": {"AutoConfig": _CLASSES[model_type]},
        "model_type": model_type,
    }


def write_configuration_code(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the Python file that `readable_config` names, where it names one."""
    model_type = _chat_type(config)
    if model_type is not None:
        shutil.copyfile(CODE, folder / f"{_CLASSES[model_type].split('.')[0]}.py")


def image_processor_config(tile_size: int) -> dict[str, Any]:
    """preprocessor_config.json as InternVL publishes it; converters take mean and standard deviation from it."""
    return {
        "crop_size": tile_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "resample": 3,
        "size": tile_size,
    }


def write_json(path: Path, content: object) -> None:
    """Write a file of a checkpoint as its publishers do: indented, not escaped."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _chat_type(config: Mapping[str, Any]) -> str | None:
    """The `model_type` in the `internvl_chat` layout; by the architecture where config.json declares another."""
    architectures = config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else None
    declared = config.get("model_type")
    if ARCHITECTURES.get(name or "", "internvl_chat") != "internvl_chat" or declared == "internvl":
        return None
    if name is None:
        return declared if declared in _CLASSES else None
    return "skywork_chat" if "Skywork" in name else "internvl_chat"
