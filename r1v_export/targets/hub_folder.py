"""A quantized checkpoint as a Hugging Face folder: what its layouts have in common when one is written.

What the source stores in 16 bits is copied bit for bit. What calibration rewrote (norms and biases that took up AWQ's
or SmoothQuant's scales) stays float32: loaders cast it, and nothing is lost on the way.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.hub_files import readable_config, write_configuration_code, write_json
from r1v_export.checkpoint.names import stored_names
from r1v_export.checkpoint.quantized.detect import QUANTIZE_CONFIG
from r1v_export.checkpoint.quantized.unified import QUANT_CONFIG
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.checkpoint.tensor_writer import NewTensor, write_tensors
from r1v_export.checkpoint_json import read_json_object
from r1v_export.count import Count
from r1v_export.log_event import log_event
from r1v_export.memory import freed_memory_kept
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.targets.reused_files import ReusedFiles, UnquantizedTensor, link_weights

_LOG = logging.getLogger(__name__)

NOTHING_STORED: Mapping[str, StoredTensor] = {}

_MODELS = ("llm_config", "text_config")


def write_folder(
    checkpoint: Checkpoint,
    tensors: Sequence[NewTensor],
    quantization_config: Mapping[str, Any],
    out: Path,
    on_progress: ProgressCallback,
    stored: Mapping[str, StoredTensor],
    reused: ReusedFiles | None,
) -> None:
    """Write weights, configuration and tokenizer into the folder `out`, one tensor in memory at a time.

    Args:
        quantization_config: of config.json; the source's own are omitted.
        stored: of `BuildInputs`: tensors that are named in the index and not written.
        reused: of `BuildInputs`: unquantized tensors then lie in files of their own.
    """
    _write_weights(out, [tensor for tensor in tensors if tensor.name not in stored], on_progress, stored, reused)
    for path in checkpoint.auxiliary_files():
        if path.name not in (QUANT_CONFIG, QUANTIZE_CONFIG):
            shutil.copyfile(path, out / path.name)
    config = read_json_object(checkpoint.folder / "config.json")
    for part in (config, *(config.get(key) for key in _MODELS)):
        if isinstance(part, dict):
            part.pop("quantization_config", None)
    write_json(out / "config.json", readable_config(config) | {"quantization_config": quantization_config})
    write_configuration_code(out, config)


def _write_weights(
    out: Path,
    tensors: Sequence[NewTensor],
    on_progress: ProgressCallback,
    stored: Mapping[str, StoredTensor],
    reused: ReusedFiles | None,
) -> None:
    apart: Sequence[NewTensor] = ()
    if reused is not None:
        unquantized = {tensor.name: tensor for tensor in tensors if isinstance(tensor, UnquantizedTensor)}
        linked = link_weights(reused, unquantized, out)
        apart = [tensor for name, tensor in unquantized.items() if name not in linked]
        tensors = [tensor for tensor in tensors if tensor.name not in unquantized]
        stored = {**stored, **linked}
    total = sum(tensor.nbytes for tensor in (*tensors, *apart))
    with freed_memory_kept():
        for written in write_tensors(out, tensors, elsewhere=stored, apart=apart):
            on_progress(written, total)
    message = "checkpoint: %(tensors)s, %(size_bytes)s in %(files)s"
    count = Count(len(tensors) + len(apart), "tensor")
    files = Count(len([*out.glob("*.safetensors")]), "file")
    log_event(_LOG, logging.INFO, message, tensors=count, size_bytes=Count(total, "byte"), files=files)


def stored_linears(linear: str, spec: ModelSpec) -> tuple[str, ...]:
    """Under which names a linear is stored; several share its rows."""
    return tuple(name.removesuffix(".weight") for name in stored_names(f"{linear}.weight", spec))


def plain_tensors(
    checkpoint: Checkpoint, artifact: Artifact, name: str, shape: tuple[int, ...]
) -> Iterator[UnquantizedTensor]:
    """A tensor that is not quantized, cut along its rows where the layout has parts of it."""
    rewritten = name in artifact.overrides
    read = artifact.overrides[name] if rewritten else partial(checkpoint.read, name)
    dtype = torch.float32 if rewritten else checkpoint.tensors[name].dtype
    names = stored_names(name, checkpoint.spec)
    part_shape = (shape[0] // len(names), *shape[1:])
    for index, stored in enumerate(names):
        chunks = partial(part_of, read, index, len(names))
        yield UnquantizedTensor(stored, dtype, part_shape, chunks, is_source=not rewritten)


def part_of(read: Callable[[], Tensor], index: int, parts: int) -> list[Tensor]:
    """Rows of a tensor, flat: the `index`-th of `parts` equal parts."""
    tensor = read()
    rows = tensor.shape[0] // parts
    return [tensor[index * rows : (index + 1) * rows].flatten()]


def cache_scales(checkpoint: Checkpoint, artifact: Artifact, key: str, value: str) -> Iterator[NewTensor]:
    """The scales of a quantized cache, float32 scalars.

    Args:
        key: name of a layer's scale of keys, behind the layer's own.
        value: likewise of values.
    """
    for layer in range(checkpoint.spec.language.num_layers):
        scales = artifact.kv_scales(layer)
        if scales is None:
            continue
        (norm,) = stored_names(f"language_model.model.layers.{layer}.input_layernorm.weight", checkpoint.spec)
        prefix = norm.removesuffix("input_layernorm.weight")
        for name, scale in ((prefix + key, scales.key), (prefix + value, scales.value)):
            yield NewTensor(name, torch.float32, (), partial(_scalar, scale))


def _scalar(value: float) -> list[Tensor]:
    return [torch.tensor([value])]
