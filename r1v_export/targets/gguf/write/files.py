"""The files of a model: `model.gguf`, its language model, and `mmproj.gguf`, its tower and projector."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.gguf.names import MMPROJ_FILE, MODEL_FILE
from r1v_export.config import BuildConfig
from r1v_export.count import Count
from r1v_export.log_event import log_event
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.targets.gguf.write.metadata import add_language, add_vision
from r1v_export.targets.gguf.write.plan import PlannedTensor, plan_tensors
from r1v_export.targets.gguf.write.tensors import TensorEncoder
from r1v_export.targets.gguf.write.vocabulary import add_vocabulary

_LOG = logging.getLogger(__name__)

ARCHITECTURES = {MODEL_FILE: gguf.MODEL_ARCH.QWEN2, MMPROJ_FILE: gguf.MODEL_ARCH.MMPROJ}


def write_gguf(
    checkpoint: Checkpoint,
    artifact: Artifact | None,
    config: BuildConfig,
    out: Path,
    on_progress: ProgressCallback = ignore_progress,
) -> None:
    """Write the files that the build asks for into the empty folder `out`, one tensor in memory at a time.

    Raises:
        UsageError: no type holds one of the linears, or a number is too large for its type.
        CheckpointError: the tokenizer is none that llama.cpp has.
    """
    tensors = plan_tensors(config, checkpoint.spec, artifact.schemes if artifact else {})
    encoder = TensorEncoder(checkpoint, artifact)
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    for file in dict.fromkeys(tensor.file for tensor in tensors):
        own = [tensor for tensor in tensors if tensor.file == file]
        writer = gguf.GGUFWriter(out / file, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[file]])
        kinds = [tensor.kind for tensor in own if tensor.is_matrix]
        if file == MODEL_FILE:
            add_language(writer, checkpoint.spec, kinds)
            add_vocabulary(writer, checkpoint.folder, checkpoint.spec, checkpoint.generation_config)
        else:
            add_vision(writer, checkpoint.spec, kinds)
        before = done
        for nbytes in _write(writer, own, encoder):
            done += nbytes
            on_progress(done, total)
        types = ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())
        message = "%(file)s: %(tensors)s, matrices in %(types)s, %(size_bytes)s"
        log_event(
            _LOG,
            logging.INFO,
            message,
            file=file,
            tensors=Count(len(own), "tensor"),
            types=types,
            size_bytes=Count(done - before, "byte"),
        )


def _write(writer: gguf.GGUFWriter, tensors: Sequence[PlannedTensor], encoder: TensorEncoder) -> Iterator[int]:
    """Write a file; yields the bytes of each tensor that is written."""
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(np.ascontiguousarray(encoder.encode(tensor)))
            yield tensor.nbytes
    finally:
        writer.close()
