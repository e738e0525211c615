"""Which quantized format a checkpoint folder is in: tensors decide whether, the configuration decides which."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from r1v_export.checkpoint.config_section import Section
from r1v_export.checkpoint.listing import shorten
from r1v_export.checkpoint.quantized import compressed_tensors
from r1v_export.checkpoint.quantized.awq import Awq
from r1v_export.checkpoint.quantized.compressed_tensors import CompressedTensors
from r1v_export.checkpoint.quantized.gptq import Gptq
from r1v_export.checkpoint.quantized.layout import ORIGINAL, QuantFormat
from r1v_export.checkpoint.quantized.unified import METHOD, QUANT_CONFIG, Unified
from r1v_export.checkpoint_json import read_json_object
from r1v_export.errors import CheckpointError

METHODS: dict[str, Callable[[Section], QuantFormat]] = {
    "awq": Awq.read,
    "gptq": Gptq.read,
    METHOD: Unified.read,
    compressed_tensors.METHOD: CompressedTensors.read,
}
"""`quant_method` -> the reader of its settings."""

QUANTIZE_CONFIG = "quantize_config.json"
"""Where AutoGPTQ kept its settings before config.json had them."""

_SUFFIXES = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv")
_MODELS = ("llm_config", "text_config")


def read_format(folder: Path, tensors: Collection[str]) -> QuantFormat | None:
    """The format of the folder's quantized linears; None where no tensor is packed or scaled, whatever it declares.

    Args:
        tensors: the stored names.

    Raises:
        CheckpointError: there are such tensors in a format that is not known, not declared, or declared wrongly.
    """
    quantized = sorted(name for name in tensors if name.endswith(_SUFFIXES))
    if not quantized:
        return None
    for method, section in _declarations(folder):
        if method in METHODS:
            return METHODS[method](section)
        raise _unknown(folder, f"quant_method {method!r}: {shorten(quantized)}")
    raise _unknown(folder, f"no quantization_config in config.json, but {shorten(quantized)}")


def _declarations(folder: Path) -> Iterator[tuple[str, Section]]:
    """What the folder says of its format, the most explicit first: the method, and its settings."""
    if (folder / QUANT_CONFIG).is_file():
        whole = Section(read_json_object(folder / QUANT_CONFIG), QUANT_CONFIG)
        yield METHOD, whole.section("quantization") or whole  # newer versions write it flat
    config = Section(read_json_object(folder / "config.json"), "config.json")
    for part in (config, *filter(None, (config.section(key) for key in _MODELS))):
        declared = part.section("quantization_config")
        if declared is not None:
            yield str(declared.get("quant_method")), declared
    if (folder / QUANTIZE_CONFIG).is_file():
        yield "gptq", Section(read_json_object(folder / QUANTIZE_CONFIG), QUANTIZE_CONFIG)


def _unknown(folder: Path, found: str) -> CheckpointError:
    return CheckpointError(
        "The checkpoint's quantized format is not supported.",
        where=folder,
        expected=f"quant_method {', '.join(sorted(METHODS))}, or float32, float16 or bfloat16 weights",
        found=found,
        fix=ORIGINAL,
    )
