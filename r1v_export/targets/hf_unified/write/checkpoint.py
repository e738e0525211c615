"""A quantized Hugging Face checkpoint in the unified layout: weights, configuration, tokenizer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.hub_files import write_json
from r1v_export.checkpoint.quantized.unified import LAYER_CONFIG, QUANT_CONFIG
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.count import Count
from r1v_export.log_event import log_event
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.targets.hf_unified.write.formats import algorithms, layer_config, mirrored, quant_config
from r1v_export.targets.hf_unified.write.tensors import unified_tensors
from r1v_export.targets.hub_folder import NOTHING_STORED, write_folder
from r1v_export.targets.reused_files import ReusedFiles

_LOG = logging.getLogger(__name__)


def write_unified(
    checkpoint: Checkpoint,
    artifact: Artifact,
    out: Path,
    on_progress: ProgressCallback = ignore_progress,
    stored: Mapping[str, StoredTensor] = NOTHING_STORED,
    reused: ReusedFiles | None = None,
) -> None:
    """Write a unified checkpoint into the empty folder `out`, one tensor in memory at a time.

    Args:
        stored, reused: of `BuildInputs`.

    Raises:
        UsageError: the layout does not hold one of the linears, or the cache.
    """
    config = quant_config(checkpoint.spec, artifact.schemes, artifact.recipe.kv_cache)
    _log_formats(checkpoint, artifact)
    tensors = unified_tensors(checkpoint, artifact, stored)
    write_folder(checkpoint, tensors, mirrored(config), out, on_progress, stored, reused)
    write_json(out / QUANT_CONFIG, config)
    layers = layer_config(config)
    if layers is not None:
        write_json(out / LAYER_CONFIG, layers)


def _log_formats(checkpoint: Checkpoint, artifact: Artifact) -> None:
    formats = algorithms(checkpoint.spec, artifact.schemes)
    for algorithm, count in sorted(Counter(formats.values()).items()):
        message = "unified checkpoint: %(linears)s in %(algorithm)s"
        log_event(_LOG, logging.INFO, message, linears=Count(count, "linear"), algorithm=algorithm)
    for linear, algorithm in formats.items():
        log_event(_LOG, logging.DEBUG, "%(linear)s: %(algorithm)s", linear=linear, algorithm=algorithm)
