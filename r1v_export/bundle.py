"""A finished bundle, opened: its manifest, its model, its tokenizer, its engines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from r1v_export.config import BuildConfig
from r1v_export.errors import BundleError, UsageError
from r1v_export.files import read_regular_bytes
from r1v_export.manifest import Manifest, read_manifest
from r1v_export.model_spec import ModelSpec
from r1v_export.serialized.contract import CONTRACT_FILE, ContractDocument
from r1v_export.serialized.document import read_document
from r1v_export.serialized.pipeline import PIPELINE_FILE, PipelineDocument
from r1v_export.strict import load_json, parse_json

MODEL_SPEC = "model.json"
"""The ModelSpec that was built, resolved."""
BUILD_CONFIG = "build.yaml"
GRAPHS = "graphs"
ENGINES = "engines"
REPORT = "report"

_BUILD = "r1v-export build --target TARGET -o FOLDER"


@dataclass(frozen=True)
class Bundle:
    """Paths and facts of a bundle. Opening one reads its manifest and nothing else."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Open a bundle and read its manifest.

        Raises:
            BundleError: not a whole bundle of this schema version.
        """
        return cls(folder, read_manifest(folder))

    @cached_property
    def spec(self) -> ModelSpec:
        """The model that the bundle was built from."""
        return read_spec(self.folder)

    @cached_property
    def config(self) -> BuildConfig:
        """What it was built as."""
        from r1v_export.build_file import load_config

        return load_config(self.folder / BUILD_CONFIG, {})

    @cached_property
    def contract(self) -> ContractDocument:
        """Its graphs and tensors."""
        return read_document(ContractDocument, self.folder / CONTRACT_FILE)

    @property
    def graphs(self) -> Path:
        """Folder of the standard ONNX graphs."""
        return self.folder / GRAPHS

    @property
    def targets(self) -> tuple[str, ...]:
        """The engines that the bundle holds, in order of preference, which is that of its pipeline.json."""
        names = {path.split("/")[1] for path in self.manifest.files if path.startswith(f"{ENGINES}/")}
        return tuple(name for name in self.pipeline.engines if name in names)

    def target(self, name: str | None) -> str:
        """The engine of that name; the first one when None.

        Raises:
            UsageError: the bundle has no engine of that name.
            BundleError: it has none at all, and none is named.
        """
        if name is None:
            if not self.targets:
                raise BundleError("The bundle has no engine.", where=self.folder, fix=f"build one with: {_BUILD}")
            return self.targets[0]
        if name not in self.targets:
            raise UsageError(
                "There is no such target in the bundle.",
                where=self.folder,
                expected=" or ".join(self.targets) or None,
                found=name,
                fix=f"pass what the bundle has, or build another with: {_BUILD}",
            )
        return name

    @cached_property
    def pipeline(self) -> PipelineDocument:
        """How images and a conversation become its graphs' inputs, and tokens an answer."""
        return read_document(PipelineDocument, self.folder / PIPELINE_FILE)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json of a bundle's folder, or nothing.

    Raises:
        BundleError: it is not JSON.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    what = "The bundle's generation config cannot be used"
    try:
        text = read_regular_bytes(path)
    except OSError as error:
        raise BundleError(f"{what}.", where=path, found=error) from error
    fields = load_json(text, BundleError, what, where=path)
    return fields if isinstance(fields, dict) else {}


def read_spec(folder: Path) -> ModelSpec:
    """The model description in a bundle's folder.

    Raises:
        BundleError: it is missing or malformed.
    """
    path, fix = folder / MODEL_SPEC, f"r1v-export verify {folder}"
    try:
        text = read_regular_bytes(path)
    except OSError as error:
        what = "The bundle's model description cannot be read."
        raise BundleError(what, where=path, found=error, fix=fix) from error
    return parse_json(ModelSpec, text, BundleError, "The bundle's model description is invalid", where=path, fix=fix)
