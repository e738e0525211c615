"""A quantized Hugging Face checkpoint in the unified layout: weights, configuration, tokenizer."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.config_section import read_json_object
from r1v_export.checkpoint.hub_files import readable_config, write_configuration_code, write_json
from r1v_export.checkpoint.quantized.detect import QUANTIZE_CONFIG
from r1v_export.checkpoint.quantized.unified import QUANT_CONFIG
from r1v_export.checkpoint.tensor_writer import write_tensors
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.targets.hf_unified.write.formats import mirrored, quant_config
from r1v_export.targets.hf_unified.write.tensors import unified_tensors

SHARD_BYTES = 5_000_000_000
_MODELS = ("llm_config", "text_config")


def write_unified(
    checkpoint: Checkpoint, artifact: Artifact, out: Path, on_progress: ProgressCallback = ignore_progress
) -> None:
    """Write a unified checkpoint into the empty folder `out`, one tensor in memory at a time.

    Raises:
        UsageError: the layout does not hold one of the linears, or the cache.
    """
    config = quant_config(checkpoint.spec, artifact.schemes, artifact.recipe.kv_cache)
    tensors = unified_tensors(checkpoint, artifact)
    total = sum(tensor.nbytes for tensor in tensors)
    for written in write_tensors(out, tensors, shards=math.ceil(total / SHARD_BYTES)):
        on_progress(written, total)
    for path in checkpoint.auxiliary_files():
        if path.name not in (QUANT_CONFIG, QUANTIZE_CONFIG):
            shutil.copyfile(path, out / path.name)
    write_json(out / QUANT_CONFIG, config)
    model_config = read_json_object(checkpoint.folder / "config.json")
    for part in (model_config, *(model_config.get(key) for key in _MODELS)):
        if isinstance(part, dict):
            part.pop("quantization_config", None)
    write_json(out / "config.json", readable_config(model_config) | {"quantization_config": mirrored(config)})
    write_configuration_code(out, model_config)
