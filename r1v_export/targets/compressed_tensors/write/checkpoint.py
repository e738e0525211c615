"""A quantized Hugging Face checkpoint as compressed-tensors stores it: weights, configuration, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.targets.compressed_tensors.write.formats import quantization_config
from r1v_export.targets.compressed_tensors.write.tensors import compressed_tensors
from r1v_export.targets.hub_folder import NOTHING_STORED, write_folder
from r1v_export.targets.reused_files import ReusedFiles


def write_compressed(
    checkpoint: Checkpoint,
    artifact: Artifact,
    out: Path,
    on_progress: ProgressCallback = ignore_progress,
    stored: Mapping[str, StoredTensor] = NOTHING_STORED,
    reused: ReusedFiles | None = None,
) -> None:
    """Write a compressed-tensors checkpoint into the empty folder `out`, one tensor in memory at a time.

    Args:
        stored, reused: of `BuildInputs`.

    Raises:
        UsageError: there is no format for one of the linears, or for the cache.
    """
    config = quantization_config(checkpoint.spec, artifact.schemes, artifact.recipe.kv_cache)
    write_folder(checkpoint, compressed_tensors(checkpoint, artifact, stored), config, out, on_progress, stored, reused)
