"""The weight files of a checkpoint folder, as one lazy mapping from stored name to tensor.

Either a single `model.safetensors` or shards with `model.safetensors.index.json`. Everything is checked from headers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1v_export.checkpoint.listing import shorten
from r1v_export.checkpoint.tensor_file import StoredTensor, read_header
from r1v_export.checkpoint.training_files import SIDE_FILE
from r1v_export.errors import CheckpointError
from r1v_export.files import read_regular_bytes
from r1v_export.manifest import MANIFEST
from r1v_export.strict import load_json

INDEX_NAME = "model.safetensors.index.json"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_CONVERT = (
    "convert it where you trust it: load it with transformers and save it with "
    "`model.save_pretrained(folder, safe_serialization=True)`"
)


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every stored tensor of a checkpoint folder by its stored name.

    Raises:
        CheckpointError: no safetensors files, or files and index that do not belong together.
    """
    index_path = folder / INDEX_NAME
    weight_files = sorted(path for path in folder.glob("*.safetensors") if not SIDE_FILE.fullmatch(path.name))
    if index_path.exists():
        return _open_shards(folder, index_path, weight_files)
    if not weight_files:
        raise _no_weights(folder)
    if len(weight_files) > 1:
        raise CheckpointError(
            "A sharded checkpoint has no index.",
            where=folder,
            expected=INDEX_NAME,
            found=shorten([path.name for path in weight_files]),
            fix=f"copy {INDEX_NAME} from where the checkpoint came from",
        )
    return read_header(weight_files[0])


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    if pickles:
        return CheckpointError(
            "The checkpoint is in pickle format, which can run code when it is opened; only safetensors is read.",
            where=folder,
            expected="*.safetensors",
            found=shorten(pickles),
            fix=_CONVERT,
        )
    if (folder / MANIFEST).is_file():
        return CheckpointError(
            "This is a bundle, which a build has made, and not a checkpoint.",
            where=folder,
            expected=f"model.safetensors, or shards with {INDEX_NAME}",
            found=MANIFEST,
            fix="name the checkpoint that it was built from",
        )
    return CheckpointError(
        "The folder holds no weights.",
        where=folder,
        expected=f"model.safetensors, or shards with {INDEX_NAME}",
        found=shorten(sorted(path.name for path in folder.iterdir())),
        fix="point at the folder that config.json and the weights lie in",
    )


def _open_shards(folder: Path, index_path: Path, weight_files: list[Path]) -> dict[str, StoredTensor]:
    shard_of = _read_index(index_path)
    shards = sorted(set(shard_of.values()))
    present = {path.name for path in weight_files}
    _refuse(
        "The index names shards that are not there.",
        [shard for shard in shards if shard not in present],
        index_path,
        "download the missing shards",
    )
    _refuse(
        "Weight files lie in the folder that the index does not name.",
        sorted(present.difference(shards)),
        index_path,
        "remove them, or copy the index that belongs to them",
    )
    headers = {shard: read_header(folder / shard) for shard in shards}
    _check_index(index_path, shard_of, headers)
    return {name: headers[shard][name] for name, shard in shard_of.items()}


def _read_index(path: Path) -> dict[str, str]:
    """The index's map from tensor name to shard file name."""
    try:
        text = read_regular_bytes(path)
    except OSError as error:
        raise CheckpointError(
            "The weight index cannot be read.", where=path, found=error.strerror, fix="check its permissions"
        ) from error
    fix = "download or copy it again"
    index = load_json(text, CheckpointError, "The weight index cannot be used", where=path, fix=fix)
    shard_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(s, str) for s in shard_of.values()):
        raise CheckpointError(
            "The weight index has no usable weight map.",
            where=path,
            expected='{"weight_map": {tensor name: shard file name, ...}}',
            found=sorted(index) if isinstance(index, dict) else type(index).__name__,
            fix=fix,
        )
    _refuse(
        "The index names files outside the checkpoint's folder.",
        sorted({shard for shard in shard_of.values() if not _is_plain_shard_name(shard)}),
        path,
        "do not use this checkpoint: a weight map holds plain *.safetensors file names only",
    )
    return shard_of


def _is_plain_shard_name(shard: str) -> bool:
    return not any(c in shard for c in "/\\\0") and shard.endswith(".safetensors")


def _check_index(index_path: Path, shard_of: Mapping[str, str], headers: Mapping[str, Mapping[str, Any]]) -> None:
    """Index and shards name the same tensors, each in one place."""
    homes: dict[str, list[str]] = {}
    for shard, tensors in headers.items():
        for name in tensors:
            homes.setdefault(name, []).append(shard)
    _refuse(
        "Tensors are stored in more than one shard.",
        [f"{name} in {' and '.join(shards)}" for name, shards in homes.items() if len(shards) > 1],
        index_path,
        "download or copy the shards again; two versions may be mixed",
    )
    _refuse(
        "The index names tensors that their shards do not hold.",
        [f"{name} in {shard}" for name, shard in shard_of.items() if name not in headers[shard]],
        index_path,
        "download or copy index and shards again; two versions may be mixed",
    )
    _refuse(
        "Shards hold tensors that the index does not name.",
        [f"{name} in {shards[0]}" for name, shards in homes.items() if name not in shard_of],
        index_path,
        "download or copy index and shards again; two versions may be mixed",
    )


def _refuse(what: str, problems: list[str], where: Path, fix: str) -> None:
    if problems:
        raise CheckpointError(what, where=where, found=shorten(problems), fix=fix)
