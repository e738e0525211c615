"""Builds of checkpoints that are quantized already: their own quantized values in place of a calibration."""

from __future__ import annotations

from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.quantized.quantized_linears import Quantized
from r1v_export.config import BuildConfig, Precision
from r1v_export.errors import UsageError
from r1v_export.progress import ProgressCallback
from r1v_export.quantization.calibration.imported import import_quantized

IMPORTED_PRECISIONS: tuple[Precision, ...] = ("fp8", "int8", "int4")
"""Those that a quantized checkpoint can bring."""


def for_checkpoint(config: BuildConfig, checkpoint: Checkpoint) -> BuildConfig:
    """The config with the precision of a quantized checkpoint, if none was given; any other checkpoint's unchanged.

    Raises:
        UsageError: another precision, another way to quantize, or an option of the calibration that it does not need,
            was named.
    """
    if checkpoint.quantized is None:
        return config
    own = precision_of(checkpoint.quantized)
    what = f"The checkpoint is quantized already ({checkpoint.quantized.format.method}): its quantized values are kept."
    ways = {"--recipe": config.recipe, "--budget": config.budget}
    for option, value in (ways | config.calibration_options).items():
        if value is not None:
            raise UsageError(what, where=checkpoint.folder, found=f"{option} {value}", fix="omit it")
    if "precision" in config.model_fields_set and config.precision != own:
        found = f"--precision {config.precision}"
        raise UsageError(what, where=checkpoint.folder, expected=f"--precision {own}", found=found, fix="omit it")
    return config.model_copy(update={"precision": own})


def precision_of(quantized: Quantized) -> Precision:
    """The fewest bits that any weight has."""
    kinds = {linear.layout.qweight_type for linear in quantized.linears.values()}
    return "int4" if kinds & {"int4", "uint4"} else "int8" if "int8" in kinds else "fp8"


def import_calibration(checkpoint: Checkpoint, out: Path, work: Path, on_progress: ProgressCallback) -> None:
    """Write the checkpoint's quantized values and scales as a calibration into `out`.

    Raises:
        CheckpointError: quantized values or scales are not what the format allows.
    """
    import_quantized(checkpoint, out, resume_folder=work, on_progress=on_progress)
