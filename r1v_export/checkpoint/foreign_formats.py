"""Quantized formats of other libraries that are not read, refused by name with what can be done."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from r1v_export.checkpoint.listing import shorten
from r1v_export.errors import CheckpointError

_BITSANDBYTES = (".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map", ".SCB", ".weight_format")


def refuse_foreign_formats(folder: Path, tensors: Collection[str]) -> None:
    """Refuse checkpoints in quantized formats that cannot be imported.

    Args:
        tensors: the stored names.

    Raises:
        CheckpointError: they are those of bitsandbytes.
    """
    found = sorted(name for name in tensors if name.endswith(_BITSANDBYTES) or ".quant_state.bitsandbytes" in name)
    if found:
        raise CheckpointError(
            "Checkpoints quantized by bitsandbytes are not read.",
            where=folder,
            expected="float32, float16 or bfloat16 weights, or one of the quantized formats in README.md",
            found=shorten(found),
            fix="use the checkpoint it was quantized from, and quantize with `r1v-export build --precision`; "
            "or load it with transformers, call model.dequantize(), and save that",
        )
