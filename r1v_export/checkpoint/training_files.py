"""What training leaves in a checkpoint folder: wrappers' prefixes in tensor names, adapters, optimizers' files."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from r1v_export.checkpoint.listing import shorten
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
SIDE_FILE = re.compile(r"(adapter|consolidated|optimizer|scheduler|training).*\.safetensors")
"""Weight files that are not part of the model in the same folder."""

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".gguf")
_ADAPTER_TENSOR = re.compile(r"(.*\.)?(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)(\..*)?")
_COMPILED = "_orig_mod."
_PARALLEL = "module."
_MERGE = "merge it into the weights with: r1v-export merge-lora MODEL -o FOLDER"
_MERGE_INTO_BASE = "merge it into the model of its training: r1v-export merge-lora MODEL --adapter FOLDER -o FOLDER"


class Unwrapped(NamedTuple):
    """Tensors under the model's own names, without prefixes added by training."""

    tensors: dict[str, StoredTensor]
    """By the names that the model gave them."""
    warnings: tuple[str, ...]


def refuse_adapter_folder(folder: Path) -> None:
    """Refuse a folder that contains a LoRA adapter without its base model.

    Raises:
        CheckpointError: the folder holds an adapter and no model.
    """
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            "The folder holds a LoRA adapter, not a model.",
            where=folder,
            expected="config.json and the weights of a whole model",
            found=ADAPTER_CONFIG,
            fix=_MERGE_INTO_BASE,
        )


def unwrap(tensors: Mapping[str, StoredTensor]) -> Unwrapped:
    """Take the prefixes of `torch.compile` and `DataParallel` off the names.

    Raises:
        CheckpointError: two tensors then have one name, or some are of an adapter that is not merged.
    """
    adapters = sorted(name for name in tensors if _ADAPTER_TENSOR.fullmatch(name))
    if adapters:
        raise CheckpointError(
            "The checkpoint holds a LoRA adapter that is not merged into its weights.",
            where=shorten(sorted({tensors[name].file.name for name in adapters})),
            expected="merged weights",
            found=shorten(adapters),
            fix=_MERGE,
        )
    found, names = [], list(tensors)
    if names and all(name.startswith(_PARALLEL) for name in names):
        found.append(_PARALLEL)
        names = [name.removeprefix(_PARALLEL) for name in names]
    if any(_COMPILED in name for name in names):
        found.append(_COMPILED)
        names = [name.replace(_COMPILED, "") for name in names]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise CheckpointError(
            "Tensors are stored with and without a wrapper's prefix.",
            where="the weight files",
            expected="each tensor once",
            found=shorten(twice),
            fix="save the model without torch.compile's and DataParallel's wrappers",
        )
    warnings = (f"tensor names are read without the prefix {' and '.join(found)} of a training wrapper",)
    return Unwrapped(dict(zip(names, tensors.values(), strict=True)), warnings if found else ())


def unused_files(folder: Path, used: Collection[Path]) -> list[str]:
    """Names of the folder's weight and adapter files that are no part of the model."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path not in used and (path.suffix in _WEIGHT_SUFFIXES or path.name == ADAPTER_CONFIG)
    )
