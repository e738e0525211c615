"""The models of `stats.json`: what a calibration was made from, and a summary of the activations it saw."""

from __future__ import annotations

from typing import Literal

from r1v_export.config import Compute, ImagePolicy, Matmul
from r1v_export.strict import StrictModel

SCHEMA_VERSION: Literal[1] = 1


class SampleEntry(StrictModel):
    """One calibration sample."""

    name: str
    sha256: str
    """Of its token ids and of its images' pixels."""
    tokens: int
    tiles: int


class InputEntry(StrictModel):
    """Summary of the activations at one input, or of a layer's cached keys or values."""

    tokens: int
    absmax: float
    mean: float
    """Of magnitudes."""
    median_channel_absmax: float
    """An absmax far above it means that few channels are outliers."""


class Stats(StrictModel):
    """Contents of `stats.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    fingerprint: str
    """Of everything that decides the numbers: `CalibrationKey.fingerprint`."""
    checkpoint: str
    """`checkpoint_fingerprint` of the model."""
    compute: Compute
    """The dtype that the model ran in during calibration."""
    matmul: Matmul = "float32"
    """What the operands of products were rounded to where it ran in float32."""
    image_policy: ImagePolicy | None
    """How image files were read; null where none were, as in an imported checkpoint."""
    samples: tuple[SampleEntry, ...]
    inputs: dict[str, InputEntry]
    warnings: tuple[str, ...]
