"""Quantized formats of other libraries that are not read, refused by name with what can be done."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from r1v_export.checkpoint.listing import shorten
from r1v_export.checkpoint_json import read_json_object
from r1v_export.errors import CheckpointError

_BITSANDBYTES = (".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map", ".SCB", ".weight_format")
_COMPRESSED_TENSORS = (".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx")
_REQUANTIZE = "use the checkpoint it was quantized from, and quantize with `r1v-export build --precision`"
_FIXES = {
    "bitsandbytes": f"{_REQUANTIZE}; or load it with transformers, call model.dequantize(), and save that",
    "compressed-tensors": f"{_REQUANTIZE}; or load it with transformers and "
    "CompressedTensorsConfig(run_compressed=False), which decompresses it, and save that",
}


def refuse_foreign_formats(folder: Path, tensors: Collection[str]) -> None:
    """Refuse checkpoints in quantized formats that cannot be imported.

    Args:
        tensors: the stored names.

    Raises:
        CheckpointError: they are those of bitsandbytes or compressed-tensors.
    """
    config = read_json_object(folder / "config.json")
    found = sorted(name for name in tensors if name.endswith(_BITSANDBYTES) or ".quant_state.bitsandbytes" in name)
    method = "bitsandbytes"
    if not found and "compressed-tensors" in _declared_methods(config):
        found = sorted(name for name in tensors if name.endswith(_COMPRESSED_TENSORS))
        method = "compressed-tensors"
    if found:
        raise CheckpointError(
            f"Checkpoints quantized by {method} are not read.",
            where=folder,
            expected="float32, float16 or bfloat16 weights, or one of the quantized formats in README.md",
            found=shorten(found),
            fix=_FIXES[method],
        )


def _declared_methods(config: Mapping[str, Any]) -> Iterator[str]:
    for part in (config, *(config.get(key) for key in ("llm_config", "text_config"))):
        declared = part.get("quantization_config") if isinstance(part, dict) else None
        if isinstance(declared, dict):
            yield str(declared.get("quant_method"))
