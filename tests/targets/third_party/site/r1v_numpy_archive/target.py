"""The target `numpy-archive`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from r1v_export.errors import UsageError
from r1v_export.serialized.pipeline import EngineDocument
from r1v_export.targets.interface import BuildInputs, NumericsSpec, Readiness, Target
from r1v_numpy_archive import doctor
from r1v_numpy_archive.config import NumpyArchiveConfig
from r1v_numpy_archive.runtime.engine import open_archive
from r1v_numpy_archive.write.archive import ARCHIVE, write_archive

if TYPE_CHECKING:
    from r1v_export.config import BuildConfig, Device
    from r1v_export.model_spec import ModelSpec
    from r1v_export.progress import ProgressCallback
    from r1v_export.quantization.recipe import Scheme
    from r1v_export.reference.model import ReferenceEngine


class NumpyArchiveTarget(Target):
    """Writes the weights in float32 into one file, from the checkpoint alone."""

    name = "numpy-archive"
    config_class = NumpyArchiveConfig
    tools = ("numpy",)

    def readiness(self) -> Readiness:
        return doctor.readiness()

    def check(self, config: BuildConfig) -> None:
        if config.precision != "fp32":
            raise UsageError(
                "A NumPy archive is in float32.", expected="--precision fp32", found=f"--precision {config.precision}"
            )

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        return 0

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        return NumericsSpec("float32")

    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        write_archive(inputs.checkpoint, out, inputs.config.options(self.name, NumpyArchiveConfig).compress)
        on_progress(1, 1, "written")

    def engine_document(self, engine: Path) -> EngineDocument:
        return EngineDocument(files={"weights": ARCHIVE}, options={})

    def missing(self, device: Device) -> str | None:
        return None if device == "cpu" else "it is computed on the CPU"

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> ReferenceEngine:
        return open_archive(engine, spec)
