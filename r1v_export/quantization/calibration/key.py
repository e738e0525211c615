"""The fingerprint of a calibration: everything that decides its numbers."""

from __future__ import annotations

import hashlib

from r1v_export.config import Compute, ImagePolicy, Matmul
from r1v_export.manifest import to_json
from r1v_export.quantization.calibration.dataset import CalibrationSet
from r1v_export.quantization.calibration_stats import SampleEntry
from r1v_export.quantization.recipe import Recipe
from r1v_export.strict import StrictModel
from r1v_export.version import VERSION


class CalibrationKey(StrictModel):
    """Everything that decides the numbers: two calibrations with equal keys give the same files."""

    producer: str = f"r1v-export {VERSION}"
    checkpoint: str
    recipe: Recipe
    compute: Compute
    matmul: Matmul = "float32"
    data: str = ""
    """`CalibrationSet.sha256`: of the whole set, whatever the shard; empty where there is none."""
    image_policy: ImagePolicy | None = None
    """How image files are read; None where there are none."""
    shard: str
    samples: tuple[SampleEntry, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key as JSON, in hexadecimal."""
        return hashlib.sha256(to_json(self.model_dump(mode="json")).encode()).hexdigest()


def make_key(
    checkpoint: str, recipe: Recipe, compute: Compute, matmul: Matmul, calibration: CalibrationSet
) -> CalibrationKey:
    """The key of calibrating a checkpoint (by its fingerprint) on a set, or on one shard of it."""
    entries = tuple(
        SampleEntry(name=s.name, sha256=s.sha256, tokens=len(s.token_ids), tiles=s.tiles) for s in calibration.samples
    )
    return CalibrationKey(
        checkpoint=checkpoint,
        recipe=recipe,
        compute=compute,
        matmul=matmul,
        data=calibration.sha256,
        image_policy=calibration.image_policy,
        shard=str(calibration.shard),
        samples=entries,
    )
