"""The contract's names as a C++ header, `engines/bundle/contract.h`.

python -m r1v_export.serialized.contract_header > engines/bundle/contract.h
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

from r1v_export import contract, manifest
from r1v_export.serialized.contract import CONTRACT_FILE, ContractDocument
from r1v_export.serialized.document import Document
from r1v_export.serialized.pipeline import PIPELINE_FILE, PipelineDocument

HEADER_FILE = "engines/bundle/contract.h"

_TENSORS = (
    contract.PIXEL_VALUES,
    contract.VISION_FEATURES,
    contract.IMAGE_EMBEDS,
    contract.INPUT_IDS,
    contract.INPUTS_EMBEDS,
    contract.POSITION_IDS,
    contract.CACHE_WRITE_INDEX,
    contract.CACHE_LENGTH,
    contract.LOGITS_INDEX,
    contract.LOGITS,
)


def contract_header() -> str:
    """Text of the header."""
    layer = "{layer}"
    cache = {
        "past_key": contract.past_key(layer),
        "past_value": contract.past_value(layer),
        "present_key": contract.present_key(layer),
        "present_value": contract.present_value(layer),
    }
    versions = {
        "contract_schema_version": _schema_version(ContractDocument),
        "pipeline_schema_version": _schema_version(PipelineDocument),
        "manifest_schema_version": manifest.SCHEMA_VERSION,
    }
    files = {"contract_file": CONTRACT_FILE, "pipeline_file": PIPELINE_FILE, "manifest_file": manifest.MANIFEST}
    return "\n".join(
        [
            "// Written by `python -m r1v_export.serialized.contract_header`; a test compares it with the contract.",
            "#pragma once",
            "",
            "namespace r1v::contract {",
            "",
            "// Graphs, in the order of the data flow.",
            *_texts((name, name) for name in contract.GRAPHS),
            "",
            "// Boundary tensors.",
            *_texts((name, name) for name in _TENSORS),
            "",
            "// The decoder's cache; {layer} stands for the number of a layer, from 0.",
            *_texts(cache.items()),
            "",
            "// Documents of a bundle, and the versions of their schemas.",
            *_texts(files.items()),
            *(f"inline constexpr int {_constant(name)} = {version};" for name, version in versions.items()),
            f"inline constexpr int kOpset = {contract.OPSET};",
            f"inline constexpr char kLocalReports[] = {json.dumps(manifest.LOCAL_REPORTS)};",
            "",
            "}  // namespace r1v::contract",
            "",
        ]
    )


def _schema_version(document: type[Document]) -> int:
    version = document.model_fields["schema_version"].default
    assert isinstance(version, int)
    return version


def _constant(name: str) -> str:
    return "k" + "".join(word.capitalize() for word in name.split("_"))


def _texts(named: Iterable[tuple[str, str]]) -> list[str]:
    return [f"inline constexpr char {_constant(name)}[] = {json.dumps(text)};" for name, text in named]


if __name__ == "__main__":
    sys.stdout.write(contract_header())
