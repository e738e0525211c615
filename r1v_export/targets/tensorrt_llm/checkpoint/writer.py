"""The checkpoint that `trtllm-build` reads: config.json and one rank{r}.safetensors for each GPU.

    transformer.vocab_embedding.weight                            on the first pipeline stage, whole on every GPU
    transformer.layers.{n}.input_layernorm.weight                 n counts from 0 on each stage
    transformer.layers.{n}.attention.{qkv,dense}.*                q, k and v of a GPU's heads one after the other
    transformer.layers.{n}.attention.kv_cache_scaling_factor      [1], where the cache is quantized
    transformer.layers.{n}.post_layernorm.weight
    transformer.layers.{n}.mlp.{fc,gate,proj}.*
    transformer.ln_f.weight, lm_head.weight                       on the last; the head padded to a multiple of tp

The files of a stage are written side by side, one tensor after the other: each weight is read once, and no more than
one linear with its shard is in memory.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, abc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import EMBED_TOKENS, LM_HEAD
from r1v_export.checkpoint.tensor_writer import NewTensor, write_tensors
from r1v_export.count import Count
from r1v_export.log_event import log_event
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.targets.tensorrt_llm.checkpoint.config import (
    CONFIG,
    QUANTIZED_LAYERS,
    checkpoint_config,
    layer_config,
)
from r1v_export.targets.tensorrt_llm.checkpoint.encode import Parts, fuse, shard, stored
from r1v_export.targets.tensorrt_llm.checkpoint.formats import (
    QuantFormat,
    describe,
    language_schemes,
    module_quant_formats,
)
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import Mapping, check_mapping, pad_vocabulary
from r1v_export.targets.tensorrt_llm.checkpoint.pack import KernelLayout
from r1v_export.targets.tensorrt_llm.checkpoint.weights import Weights

_LOG = logging.getLogger(__name__)

FINAL_NORM = "language_model.model.norm.weight"
CHUNK_ROWS = 4096
"""Rows of an embedding table that are converted at a time."""


def write_checkpoint(
    checkpoint: Checkpoint,
    artifact: Artifact | None,
    out: Path,
    dtype: torch.dtype,
    *,
    parallel: Mapping | None = None,
    layout: KernelLayout = 80,
    on_progress: ProgressCallback = ignore_progress,
) -> None:
    """Write a language model into the empty folder `out`; the same input gives the same bytes.

    Args:
        artifact: the model's calibration; None stores everything in `dtype`.
        dtype: that the engine computes in.
        parallel: over how many GPUs; one if omitted.
        layout: of the GPUs' kernels, for weights with zero points.

    Raises:
        UsageError: this quantization cannot be stored or shared out so.
        BundleError: the calibration does not fit its recipe.
        CheckpointError: a weight is NaN, infinite or too large for `dtype`.
    """
    parallel, spec = parallel or Mapping(), checkpoint.spec.language
    schemes = artifact.schemes if artifact else {}
    quant_formats = module_quant_formats(spec, language_schemes(schemes))
    check_mapping(spec, quant_formats, parallel)
    kv_cache = artifact.recipe.kv_cache if artifact else None
    _write_json(out / CONFIG, checkpoint_config(spec, quant_formats, parallel, dtype, kv_cache, layout))
    layers = layer_config(quant_formats, parallel.layers(0, spec.num_layers), kv_cache)
    if layers is not None:
        _write_json(out / QUANTIZED_LAYERS, layers)
    writer = _Writer(Weights(checkpoint, artifact, quant_formats, dtype), parallel, layout)
    _log_formats(quant_formats)
    for share in writer.write(out):
        on_progress(share, 1.0)
    for file in sorted(out.iterdir()):
        message = "TensorRT-LLM checkpoint: %(file)s, %(size_bytes)s"
        file_bytes = Count(file.stat().st_size, "byte")
        log_event(_LOG, logging.INFO, message, file=file.name, size_bytes=file_bytes)


def _log_formats(quant_formats: abc.Mapping[tuple[int, str], QuantFormat | None]) -> None:
    names = {place: describe(quant_format) for place, quant_format in quant_formats.items()}
    for name, count in sorted(Counter(names.values()).items()):
        message = "TensorRT-LLM checkpoint: %(linears)s in %(format)s"
        log_event(_LOG, logging.INFO, message, linears=Count(count, "linear"), format=name)
    for (layer, linear), name in names.items():
        message = "layer %(layer)d, %(linear)s: %(format)s"
        log_event(_LOG, logging.DEBUG, message, layer=layer, linear=linear, format=name)


def _write_json(path: Path, fields: abc.Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


class _Writer:
    def __init__(self, weights: Weights, parallel: Mapping, layout: KernelLayout) -> None:
        self.weights, self.parallel, self.layout = weights, parallel, layout
        self.spec = weights.checkpoint.spec.language

    def write(self, out: Path) -> Iterator[float]:
        """Write all files, yielding the share that is done."""
        for stage in range(self.parallel.pp):
            for share in self._write_stage(out, stage):
                yield (stage + share) / self.parallel.pp

    def _write_stage(self, out: Path, stage: int) -> Iterator[float]:
        tensors = [list(self._tensors(stage, rank)) for rank in range(self.parallel.tp)]
        total = sum(tensor.nbytes for tensor in tensors[0])
        names = [f"rank{stage * self.parallel.tp + rank}.safetensors" for rank in range(self.parallel.tp)]
        files = [write_tensors(out, new, file=name) for name, new in zip(names, tensors, strict=True)]
        # Side by side: what one GPU's file takes of a linear, the others take next. After a kill they may go on at
        # different tensors, and end one after the other.
        for written in zip_longest(*files, fillvalue=total):
            yield written[0] / total

    def _tensors(self, stage: int, rank: int) -> Iterator[NewTensor]:
        """What the file of one GPU holds, in order."""
        layers = self.parallel.layers(stage, self.spec.num_layers)
        if stage == 0:
            rows = range(self.spec.vocab_size)
            yield self._table("transformer.vocab_embedding.weight", EMBED_TOKENS, rows)
        for number, layer in enumerate(layers):
            yield from self._layer(f"transformer.layers.{number}", layer, rank)
        if stage == self.parallel.pp - 1:
            yield self._vector("transformer.ln_f.weight", FINAL_NORM)
            size = pad_vocabulary(self.spec.vocab_size, self.parallel.tp) // self.parallel.tp
            yield self._table("lm_head.weight", LM_HEAD, range(rank * size, (rank + 1) * size))

    def _layer(self, name: str, layer: int, rank: int) -> Iterator[NewTensor]:
        block = f"language_model.model.layers.{layer}"
        yield self._vector(f"{name}.input_layernorm.weight", f"{block}.input_layernorm.weight")
        for module in ("attention.qkv", "attention.dense"):
            yield from self._linear(f"{name}.{module}", layer, module, rank)
        kv_scale = self.weights.kv_scale(layer)
        if kv_scale is not None:
            yield _new(f"{name}.attention.kv_cache_scaling_factor", kv_scale, partial(_one, kv_scale))
        yield self._vector(f"{name}.post_layernorm.weight", f"{block}.post_attention_layernorm.weight")
        for module in ("mlp.fc", "mlp.gate", "mlp.proj"):
            yield from self._linear(f"{name}.{module}", layer, module, rank)

    def _vector(self, name: str, source: str) -> NewTensor:
        blank = torch.empty(self.spec.hidden_size, dtype=self.weights.dtype, device="meta")
        return _new(name, blank, lambda: [self.weights.read(source)])

    def _table(self, name: str, source: str, rows: range) -> NewTensor:
        """Rows of an embedding table; those beyond its end are zeros."""
        blank = torch.empty(len(rows), self.spec.hidden_size, dtype=self.weights.dtype, device="meta")

        def chunks() -> Iterator[Tensor]:
            table = self.weights.map(source)
            for start in range(rows.start, rows.stop, CHUNK_ROWS):
                wanted = range(start, min(start + CHUNK_ROWS, rows.stop))
                chunk = self.weights.cast(source, table[wanted.start : wanted.stop])
                padding = len(wanted) - len(chunk)
                yield torch.cat((chunk, chunk.new_zeros(padding, chunk.shape[1]))) if padding else chunk

        return _new(name, blank, chunks)

    def _linear(self, name: str, layer: int, module: str, rank: int) -> Iterator[NewTensor]:
        linears = self.weights.blank(layer, module)
        for suffix in linears[0]:
            blank = self._shard(linears, layer, module, suffix, rank)
            yield _new(f"{name}.{suffix}", blank, partial(self._chunks, layer, module, suffix, rank))

    def _chunks(self, layer: int, module: str, suffix: str, rank: int) -> list[Tensor]:
        return [self._shard(self.weights.linear(layer, module), layer, module, suffix, rank)]

    def _shard(self, linears: Sequence[Parts], layer: int, module: str, suffix: str, rank: int) -> Tensor:
        """One GPU's share of a tensor, as stored: of q, k and v each, then joined."""
        parts = [shard(linear[suffix], module, rank, self.parallel.tp) for linear in linears]
        fused = fuse(f"layer {layer} {module}", suffix, parts)
        return stored(suffix, fused, self.weights.quant_formats[layer, module], self.weights.dtype, self.layout)


def _new(name: str, blank: Tensor, chunks: Callable[[], Any]) -> NewTensor:
    """A tensor of the dtype and shape of `blank`."""
    return NewTensor(name, blank.dtype, tuple(blank.shape), lambda: (chunk.flatten() for chunk in chunks()))


def _one(tensor: Tensor) -> list[Tensor]:
    return [tensor]
