"""What vLLM takes, as data read from its sources (readers/vllm-0.32.0.json), and how a folder is held against it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

READER = json.loads((Path(__file__).parent / "readers/vllm-0.32.0.json").read_text())
COMPRESSED = READER["compressed_tensors"]
_SHARDS = {shard: module for module, shards in READER["fused"].items() for shard in shards}


def schemes_for(group: Mapping[str, Any]) -> list[str]:
    """The classes of vLLM that take a config group of compressed-tensors."""
    refused = COMPRESSED["refused"]["weights"]
    if any(group["weights"].get(field) in values for field, values in refused.items()):
        return []
    return [name for name, scheme in COMPRESSED["schemes"].items() if _is_taken(group, scheme)]


def _is_taken(group: Mapping[str, Any], scheme: Mapping[str, Any]) -> bool:
    if group["format"] not in scheme["format"] or not fits(group["weights"], scheme["weights"]):
        return False
    inputs, wanted = group["input_activations"], scheme["input_activations"]
    if inputs is None or wanted is None:
        return inputs is wanted
    return any(fits(inputs, each) for each in wanted)


def fits(arguments: Mapping[str, Any], wanted: Mapping[str, list[Any]]) -> bool:
    """Whether each of the fields is one of the values that are taken."""
    return all(arguments[field] in values for field, values in wanted.items())


def tensors_of(group: Mapping[str, Any]) -> dict[str, str]:
    """Suffix -> dtype of what vLLM loads of a linear of a group."""
    (name,) = schemes_for(group)
    scheme, inputs = COMPRESSED["schemes"][name], group["input_activations"]
    tensors = dict(scheme["tensors"])
    if not group["weights"]["symmetric"]:
        tensors |= scheme["tensors_if_asymmetric"]
    if inputs is not None and not inputs["dynamic"]:
        tensors |= scheme["tensors_if_static"]
    return tensors


def modules(names: Iterable[str]) -> dict[str, set[str]]:
    """vLLM's modules for linears that are named in full: module, its layer as N -> which shards of it are named."""
    found: dict[str, set[str]] = {}
    for name in names:
        prefix, _, last = name.rpartition(".")
        module = f"{prefix}.{_SHARDS.get(last, last)}"
        found.setdefault(module, set()).add(last)
    return found


def kind(module: str) -> str:
    """A module's name with N for the number of its layer."""
    return re.sub(r"\.layers\.\d+\.", ".layers.N.", module)
