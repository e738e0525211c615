"""The documents of a bundle (`contract.json`, `pipeline.json`): written, opened, and compared with the rest of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from r1v_export import contract
from r1v_export.bundle import ENGINES, GRAPHS, Bundle, read_generation_config
from r1v_export.config import BuildConfig
from r1v_export.errors import BundleError
from r1v_export.model_spec import ModelSpec
from r1v_export.processing.pipeline_document import TOKENIZER_FILE, describe_pipeline
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.quoting import shorten_text
from r1v_export.serialized.contract import CONTRACT_FILE, ContractDocument, describe_contract
from r1v_export.serialized.document import Document, read_document
from r1v_export.serialized.pipeline import PIPELINE_FILE, PipelineDocument
from r1v_export.targets import registry


def write_files(bundle: Path, graphs: Iterable[str], config: BuildConfig, spec: ModelSpec, folder: Path) -> None:
    """Write the documents of a bundle whose engines are built, and a `tokenizer.json` where the checkpoint has none.

    Args:
        bundle: where model files, graphs and engines are.
        graphs: that the bundle has.
        folder: where to write.

    Raises:
        CheckpointError: the tokenizer or generation_config.json cannot be used.
    """
    tokenizer = Tokenizer.from_folder(bundle)
    pipeline = _pipeline(bundle, spec, tokenizer, config, config.targets)
    _write(folder / CONTRACT_FILE, _contract(spec, graphs, config))
    _write(folder / PIPELINE_FILE, pipeline)
    if not (bundle / TOKENIZER_FILE).exists():
        text = json.dumps(tokenizer.definition(), indent=2, ensure_ascii=False) + "\n"
        (folder / TOKENIZER_FILE).write_text(text, encoding="utf-8")


def check_files(bundle: Bundle) -> None:
    """Compare both documents with what model.json, build.yaml, tokenizer, generation_config.json and engines say.

    Raises:
        BundleError: one differs; the error names the first field.
    """
    graphs = [name for name in contract.GRAPHS if f"{GRAPHS}/{name}.onnx" in bundle.manifest.files]
    _require_equal(
        read_document(ContractDocument, bundle.folder / CONTRACT_FILE),
        _contract(bundle.spec, graphs, bundle.config),
        bundle.folder / CONTRACT_FILE,
    )
    _require_equal(
        read_document(PipelineDocument, bundle.folder / PIPELINE_FILE),
        _pipeline(bundle.folder, bundle.spec, Tokenizer.from_folder(bundle.folder), bundle.config, bundle.targets),
        bundle.folder / PIPELINE_FILE,
    )


def _contract(spec: ModelSpec, graphs: Iterable[str], config: BuildConfig) -> ContractDocument:
    return describe_contract(
        spec.sizes, registry.compute_dtype(config), {name: f"{GRAPHS}/{name}.onnx" for name in graphs}
    )


def _pipeline(
    bundle: Path, spec: ModelSpec, tokenizer: Tokenizer, config: BuildConfig, targets: Iterable[str]
) -> PipelineDocument:
    engines = {target: registry.get_target(target).engine_document(bundle / ENGINES / target) for target in targets}
    return describe_pipeline(spec, tokenizer, read_generation_config(bundle), engines, config.image_policy)


def _write(path: Path, document: Document) -> None:
    path.write_text(document.to_json(), encoding="utf-8")


def _require_equal(found: Document, expected: Document, path: Path) -> None:
    if found != expected:
        field, want, have = next(_differences(expected.model_dump(mode="json"), found.model_dump(mode="json"), ""))
        raise BundleError(
            f"{path.name} contradicts the rest of the bundle.",
            where=f"{path}: {field}",
            expected=shorten_text(str(want)),
            found=shorten_text(str(have)),
            fix="fetch the bundle again, or build it again with this version",
        )


def _differences(expected: Any, found: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """(field, expected, found) of all that differs between two JSON values."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in (*expected, *(key for key in found if key not in expected)):
            yield from _differences(expected.get(key), found.get(key), f"{where}.{key}" if where else key)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (want, have) in enumerate(zip(expected, found, strict=True)):
            yield from _differences(want, have, f"{where}.{index}")
    elif expected != found:
        yield where, expected, found
