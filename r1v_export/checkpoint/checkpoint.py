"""A checkpoint: validated from headers alone when opened, read one tensor at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from r1v_export.checkpoint.config import Configuration, DType, read_configuration
from r1v_export.checkpoint.foreign_formats import refuse_foreign_formats
from r1v_export.checkpoint.gguf.open_gguf import Imported, is_gguf, open_gguf
from r1v_export.checkpoint.listing import shorten
from r1v_export.checkpoint.names import (
    expected_tensors,
    has_older_prefixes,
    is_unused,
    stored_names,
    stores_lm_head,
)
from r1v_export.checkpoint.quantized.detect import QUANTIZE_CONFIG, read_format
from r1v_export.checkpoint.quantized.quantized_linears import Quantized, find_quantized
from r1v_export.checkpoint.quantized.unified import QUANT_CONFIG
from r1v_export.checkpoint.resolve import Source, resolve
from r1v_export.checkpoint.tensor_file import StoredTensor
from r1v_export.checkpoint.tensor_store import INDEX_NAME, open_tensors
from r1v_export.checkpoint.training_files import refuse_adapter_folder, unused_files, unwrap
from r1v_export.checkpoint.validate import check_tensors
from r1v_export.checkpoint_json import read_json_object
from r1v_export.count import Count
from r1v_export.log_event import log_event
from r1v_export.model_spec import ModelSpec
from r1v_export.processing.tokenizer import eos_token_ids

_LOG = logging.getLogger(__name__)

AUXILIARY_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    QUANT_CONFIG,
    QUANTIZE_CONFIG,
)
"""Everything of a checkpoint but its weights that a bundle carries on."""


@dataclass(frozen=True)
class TensorInfo:
    """A canonical tensor, from headers alone."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int


class Checkpoint:
    """One checkpoint folder. Make it with `Checkpoint.open`; the constructor trusts its arguments.

    Attributes:
        quantized: its linears that are stored as quantized values and scales; None if there are none. Their weights
            are read like all others, and are then dequantized.
        template_reason: why `spec.template` was chosen.
        warnings: what its files say or hold that is not used, a sentence each.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        spec: ModelSpec,
        stored: Mapping[str, tuple[StoredTensor, ...]],
        quantized: Quantized | None = None,
        template_reason: str = "",
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.folder, self.source, self.spec = folder, source, spec
        self._stored, self.quantized = stored, quantized
        self.template_reason, self.warnings = template_reason, warnings
        self._imported: Imported | None = None
        """Of GGUF files: `folder` is there as long as this is."""

    @classmethod
    def open(cls, model: str | Path | None = None, *, revision: str | None = None, offline: bool = False) -> Checkpoint:
        """Find a checkpoint and check all of it before any weight is read.

        Args:
            model: None or "r1v-nano" for the small trained model of the package, a folder, a GGUF file with its mmproj
                file next to it, or a hub id.
            revision: branch, tag or commit of a hub id.
            offline: use the hub's local cache only.

        Raises:
            CapabilityError: a GGUF file, and the package gguf is not installed.
            CheckpointError: configuration, tokenizer, index, file extents, or any tensor's presence, shape or dtype
                is not as it should be.
        """
        imported = open_gguf(Path(str(model)), revision) if is_gguf(model) else None
        if imported:
            folder, source = imported.folder, Source("folder", str(model), None)
        else:
            folder, source = resolve(model, revision=revision, offline=offline)
        refuse_adapter_folder(folder)
        read_json_object(folder / "config.json")
        tensors, renamed = unwrap(imported.tensors if imported else open_tensors(folder))
        refuse_foreign_formats(folder, tensors)
        form = read_format(folder, tensors)
        configuration = read_configuration(
            folder, stores_lm_head=stores_lm_head(tensors), stored_dtype=_main_dtype(tensors.values())
        )
        spec, unused_layers = configuration.spec, configuration.unused_vision_layers
        older = has_older_prefixes(tensors)
        wanted = {name: stored_names(name, spec, older) for name in expected_tensors(spec)}
        quantized = find_quantized(form, spec, wanted, tensors) if form else None
        known = set(quantized.stored) if quantized else set[str]()
        for linear in quantized.linears if quantized else ():
            del wanted[f"{linear}.weight"]
        superfluous = set(tensors).difference(known, *wanted.values())
        check_tensors(spec, wanted, tensors, {name for name in superfluous if not is_unused(name, unused_layers)})
        stored = {name: tuple(tensors[s] for s in names) for name, names in wanted.items()}
        unused = (*renamed, *_unused(configuration, unused_files(folder, {tensor.file for tensor in tensors.values()})))
        checkpoint = cls(folder, source, spec, stored, quantized, configuration.template_reason, unused)
        checkpoint._imported = imported
        eos_token_ids(checkpoint.generation_config, spec.language.vocab_size)
        message = "opened %(checkpoint)s (%(kind)s): %(architecture)s, %(tensors)s"
        facts = {"checkpoint": str(folder), "kind": source.kind, "architecture": spec.architecture}
        log_event(_LOG, logging.INFO, message, **facts, tensors=Count(len(tensors), "tensor"))
        for note in checkpoint.notes:
            _LOG.info("%s", note)
        for file in checkpoint.files():
            message = "weights: %(file)s, %(size_bytes)s"
            file_bytes = Count(file.stat().st_size, "byte")
            log_event(_LOG, logging.DEBUG, message, file=file.name, size_bytes=file_bytes)
        return checkpoint

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the model by canonical name. Tied embeddings appear under both of their names."""
        return {name: self._info(name, shape) for name, shape in expected_tensors(self.spec).items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What someone who builds from the checkpoint should see: how it was read, and what was not used."""
        return f"template {self.spec.template}: {self.template_reason}", *self.warnings

    def _info(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        parts = self._stored.get(name)
        if parts is None:
            return TensorInfo(torch.float32, shape, torch.float32.itemsize * math.prod(shape))
        return TensorInfo(parts[0].dtype, shape, sum(part.nbytes for part in parts))

    def read(self, name: str) -> torch.Tensor:
        """One tensor by canonical name, in its stored dtype; the weight of a quantized linear dequantized, float32.

        Nothing is kept: memory is given back with the tensor. It may be a copy-on-write map of the file.

        Raises:
            CheckpointError: a file is gone, or a quantized linear holds what its format does not allow.
        """
        if name not in self._stored and self.quantized is not None:
            return self.quantized.linears[name.removesuffix(".weight")].decode().weight()
        parts = [part.read() for part in self._stored[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def read_start(self, name: str, size_bytes: int) -> bytes:
        """The first bytes of a tensor by canonical name, as it is stored, or all where it has fewer.

        Raises:
            CheckpointError: a file is gone.
        """
        start = b""
        for part in self._stored[name]:
            if len(start) < size_bytes:
                start += part.read_start(size_bytes - len(start))
        return start

    def files(self) -> list[Path]:
        """The weight files, and their index where there is one."""
        weights = {part.file for parts in self._stored.values() for part in parts}
        if self.quantized is not None:
            weights |= {tensor.file for tensor in self.quantized.stored.values()}
        index = self.folder / INDEX_NAME
        return sorted(weights) + ([index] if index.exists() else [])

    def auxiliary_files(self) -> list[Path]:
        """Configuration, tokenizer and template files that are there."""
        return [path for name in AUXILIARY_FILES if (path := self.folder / name).is_file()]

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, or nothing."""
        path = self.folder / "generation_config.json"
        return read_json_object(path) if path.exists() else {}


def _unused(configuration: Configuration, files: list[str]) -> Iterator[str]:
    if configuration.unused_keys:
        yield f"config.json: not used: {shorten(configuration.unused_keys)}"
    if files:
        yield f"files that are no part of the model: {shorten(files)}"


def _main_dtype(tensors: Iterable[StoredTensor]) -> DType:
    """The floating-point dtype that most bytes of weights are stored in."""
    nbytes: dict[DType, int] = {"bfloat16": 0, "float16": 0, "float32": 0}
    for tensor in tensors:
        for dtype in nbytes:
            if tensor.dtype == getattr(torch, dtype):
                nbytes[dtype] += tensor.nbytes
    return max(nbytes, key=lambda dtype: nbytes[dtype])
