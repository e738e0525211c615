"""How thoroughly a build calibrates where the user did not say: `full`, or `quick` for a model that takes hours here.

The choice follows from the model's size and the device alone, so that the same command gives the same bundle on every
machine.
"""

from __future__ import annotations

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, Effort
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.calibration.matmul_precision import choose_matmul
from r1v_export.quantization.recipe import PRESETS
from r1v_export.quantization.sizes import parameter_count

QUICK_FROM_PARAMETERS = 8e9
"""Above, AWQ and GPTQ take hours on a few CPU cores."""

SAMPLES = {"quick": 24, "full": 128}
QUICK_PRESETS = PRESETS | {"int4": "int4-rtn"}
"""`--precision` -> the recipe of a quick calibration: weights alone are rounded to nearest where that is usable."""


def effort_of(config: BuildConfig, spec: ModelSpec) -> Effort:
    """`quick` or `full`."""
    if config.calibration.effort != "auto":
        return config.calibration.effort
    large = parameter_count(spec) >= QUICK_FROM_PARAMETERS
    return "quick" if large and config.device == "cpu" else "full"


def with_effort(config: BuildConfig, spec: ModelSpec) -> BuildConfig:
    """The config with what its effort stands for: the number of samples, and the effort itself."""
    effort = effort_of(config, spec)
    samples = config.calibration.samples or SAMPLES[effort]
    calibration = config.calibration.model_copy(update={"effort": effort, "samples": samples})
    return config.model_copy(update={"calibration": calibration})


def resolved_calibration(config: BuildConfig, checkpoint: Checkpoint) -> BuildConfig:
    """The config of `with_effort` with the precision of products that this CPU calls for.

    Raises:
        UsageError: bfloat16 is wanted for weights that it would round.
    """
    config = with_effort(config, checkpoint.spec)
    matmul = choose_matmul(config.calibration.matmul_precision, checkpoint, config.device)
    calibration = config.calibration.model_copy(update={"matmul_precision": matmul})
    return config.model_copy(update={"calibration": calibration})


def default_recipe(config: BuildConfig, *, fp8_per_tensor: bool) -> str:
    """The recipe that the precision stands for.

    Args:
        config: of `with_effort`; before the model is known, that of a full calibration.
        fp8_per_tensor: whether a target stores one scale for each FP8 weight.
    """
    if config.precision == "fp8" and fp8_per_tensor:
        return "fp8-tensor"
    presets = QUICK_PRESETS if config.calibration.effort == "quick" else PRESETS
    return presets[config.precision]
