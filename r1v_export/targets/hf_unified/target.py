"""The target `hf-unified`: a quantized Hugging Face checkpoint for TensorRT-LLM's PyTorch backend, vLLM and SGLang."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.config_section import read_json_object
from r1v_export.checkpoint.quantized.detect import QUANTIZE_CONFIG
from r1v_export.checkpoint.quantized.unified import QUANT_CONFIG
from r1v_export.checkpoint.spec import ModelSpec
from r1v_export.checkpoint.tensor_writer import write_tensors
from r1v_export.config import BuildConfig, Device
from r1v_export.errors import UsageError
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.recipe import Scheme, load
from r1v_export.quantization.sizes import checkpoint_bytes
from r1v_export.targets.hf_unified.runtime.reader import UnifiedEngine, open_unified
from r1v_export.targets.hf_unified.write.formats import (
    algorithm_of,
    algorithms,
    cache_algorithm,
    mirrored,
    quant_config,
)
from r1v_export.targets.hf_unified.write.tensors import unified_tensors
from r1v_export.targets.registry import Advance, BuildInputs, NumericsSpec

SHARD_BYTES = 5_000_000_000
_HUNDREDTHS = 100
_MODELS = ("llm_config", "text_config")
_PRECISIONS = ("fp8", "int4")


class HfUnifiedTarget:
    """Writes a folder that is a checkpoint of its own: weights, configuration, tokenizer."""

    name = "hf-unified"
    graphs: tuple[str, ...] = ()

    def check(self, config: BuildConfig) -> None:
        if not config.quantized:
            raise UsageError(
                "A unified checkpoint is a quantized one.",
                where=f"--target {self.name}",
                expected="--precision fp8 or int4",
                found=f"--precision {config.precision}",
                fix="name a quantized precision; unquantized, the checkpoint that is built from is what runtimes load",
            )
        if config.recipe is None and config.precision not in _PRECISIONS:
            raise UsageError(
                "The unified layout does not hold this precision.",
                where=f"--target {self.name}",
                expected=f"--precision {' or '.join(_PRECISIONS)}",
                found=f"--precision {config.precision}",
            )
        if config.recipe is not None:
            recipe = load(config.recipe)
            cache_algorithm(recipe.kv_cache)
            for rule in recipe.rules:
                if rule.scheme is not None:
                    algorithm_of(", ".join(rule.modules), rule.scheme)

    def check_model(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
        algorithms(spec, schemes)

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        return checkpoint_bytes(spec, schemes, spec.dtype)

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        """The checkpoint is read back in float32: nothing but what it stores is rounded."""
        return NumericsSpec("float32")

    def build(self, inputs: BuildInputs, out: Path, advance: Advance) -> None:
        assert inputs.artifact is not None, "check refuses builds that quantize nothing"
        write_unified(inputs.checkpoint, inputs.artifact, out, advance)

    def missing(self, device: Device) -> str | None:
        return None

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> UnifiedEngine:
        return open_unified(engine, spec, device)


def write_unified(
    checkpoint: Checkpoint, artifact: Artifact, out: Path, advance: Callable[[int], None] = lambda _: None
) -> None:
    """Write a unified checkpoint into the empty folder `out`, one tensor in memory at a time.

    Raises:
        UsageError: the layout does not hold one of the linears, or the cache.
    """
    config = quant_config(checkpoint.spec, artifact.schemes, artifact.recipe.kv_cache)
    tensors = unified_tensors(checkpoint, artifact)
    total = sum(tensor.nbytes for tensor in tensors)
    told = 0
    for written in write_tensors(out, tensors, shards=math.ceil(total / SHARD_BYTES)):
        advance(_HUNDREDTHS * written // total - told)
        told = _HUNDREDTHS * written // total
    for path in checkpoint.auxiliary_files():
        if path.name not in (QUANT_CONFIG, QUANTIZE_CONFIG):
            shutil.copyfile(path, out / path.name)
    _write_json(out / QUANT_CONFIG, config)
    model_config = read_json_object(checkpoint.folder / "config.json")
    for part in (model_config, *(model_config.get(key) for key in _MODELS)):
        if isinstance(part, dict):
            part.pop("quantization_config", None)
    _write_json(out / "config.json", model_config | {"quantization_config": mirrored(config)})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
