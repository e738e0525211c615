"""Reads a TensorRT-LLM checkpoint back: every GPU's file, un-packed, un-shared and un-fused.

Written from the format's description, apart from the writer: what it makes of a checkpoint is what the checkpoint says,
and so what an engine built from it must compute. No GPU and no TensorRT-LLM.
Shape letters: O output features, I input features, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from r1v_export.checkpoint.tensor_file import StoredTensor, read_header
from r1v_export.errors import BundleError, CheckpointError
from r1v_export.files import read_regular_bytes
from r1v_export.model_spec import LanguageSpec, RopeScaling
from r1v_export.quantization.kv_scales import CacheType, KVScales
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.strict import StrictModel, parse_fields, parse_json
from r1v_export.targets.tensorrt_llm.checkpoint.decode import Shard, decode, join, split_outputs

_AGAIN = "build the bundle again"

CACHES: dict[str, CacheType] = {"FP8": "fp8", "INT8": "int8"}
"""What `kv_cache_quant_algo` says that the cache holds, times `kv_cache_scaling_factor`; float8 is E4M3."""


class _Part(StrictModel, extra="ignore"):
    """Of TensorRT-LLM's fields those that are read here; the library has many more."""


class Quantization(_Part):
    """How a linear, or the whole model, is quantized."""

    quant_algo: str | None = None
    kv_cache_quant_algo: Literal["FP8", "INT8"] | None = None
    group_size: int = 128
    exclude_modules: tuple[str, ...] = ()


class _LayerConfig(_Part):
    """`quant_cfg.json` of a model whose linears are quantized differently."""

    quantized_layers: dict[str, Quantization]


class _Producer(_Part):
    kernel_layout: int = 80


class _Mapping(_Part):
    world_size: int = Field(ge=1)
    tp_size: int = Field(ge=1)
    pp_size: int = Field(ge=1)


class _LinearScaling(StrictModel):
    type: Literal["linear"]
    factor: float = Field(ge=1)


class Config(_Part):
    """The fields of `config.json` that decide what is computed. None of them has a default here: an engine must not
    depend on the library's."""

    producer: _Producer = _Producer()
    architecture: Literal["Qwen2ForCausalLM"]
    qwen_type: Literal["qwen2"]
    dtype: Literal["float32", "float16", "bfloat16"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    hidden_act: Literal["silu"]
    norm_epsilon: float
    position_embedding_type: Literal["rope_gpt_neox"]
    rotary_base: float
    rotary_scaling: _LinearScaling | None
    max_position_embeddings: int
    mapping: _Mapping
    quantization: Quantization


@dataclass(frozen=True)
class LanguageCheckpoint:
    """A language model as its checkpoint describes it.

    Attributes:
        spec: the model.
        tensors: all that is not quantized, by the published checkpoints' names.
        linears: the quantized linears, by the same names.
        kv_scales: of each layer's cached keys and values, where the cache is quantized: one for both.
    """

    spec: LanguageSpec
    tensors: Mapping[str, Tensor]
    linears: Mapping[str, QuantizedLinear]
    kv_scales: Mapping[int, KVScales]


def read_checkpoint(folder: Path) -> LanguageCheckpoint:
    """Read a checkpoint and check its tensors.

    Raises:
        BundleError: a file is missing or damaged, a linear lacks scales or has those of another algorithm, a scale is
            not a positive number, an algorithm is unknown, or GPUs disagree about what they all hold.
    """
    reader = CheckpointReader(folder)
    whole = Part()
    layers = (reader.layer(layer) for layer in range(reader.config.num_hidden_layers))
    for part in (reader.embeddings(), *layers, reader.head()):
        whole.tensors.update(part.tensors)
        whole.linears.update(part.linears)
        whole.kv_scales.update(part.kv_scales)
    return LanguageCheckpoint(reader.spec(), whole.tensors, whole.linears, whole.kv_scales)


def read_config(folder: Path) -> Config:
    """Read config.json of a checkpoint.

    Raises:
        BundleError: it is missing or invalid.
    """
    path = folder / "config.json"
    try:
        text = read_regular_bytes(path)
    except OSError as error:
        raise BundleError("The checkpoint has no config.json.", where=path, found=error.strerror, fix=_AGAIN) from error
    return parse_json(Config, text, BundleError, "The checkpoint's config is invalid", where=path, fix=_AGAIN)


@dataclass(frozen=True)
class Part:
    """A part of a `LanguageCheckpoint`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    kv_scales: dict[int, KVScales] = field(default_factory=dict)


class CheckpointReader:
    """Reads a checkpoint part by part.

    Raises:
        BundleError: as `read_checkpoint`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, read_config(folder)
        mapping = self.config.mapping
        self.tp, self.pp = mapping.tp_size, mapping.pp_size
        if self.tp * self.pp != mapping.world_size:
            raise self._bad("config.json: mapping", f"world_size {self.tp * self.pp}", mapping.world_size)
        self.files = [self._open(rank) for rank in range(mapping.world_size)]

    def _open(self, rank: int) -> dict[str, StoredTensor]:
        try:
            return read_header(self.folder / f"rank{rank}.safetensors")
        except CheckpointError as error:
            raise BundleError(error.what, where=error.where, found=error.found, fix=_AGAIN) from error

    def embeddings(self) -> Part:
        """The embedding table."""
        return Part({"model.embed_tokens.weight": self._same(range(self.tp), "transformer.vocab_embedding.weight")})

    def head(self) -> Part:
        """The final norm and the head."""
        last = range((self.pp - 1) * self.tp, self.pp * self.tp)
        parts = [self._tensor(rank, "lm_head.weight") for rank in last]
        # Of a single GPU it stays a map of its file, whose pages the kernel gives back.
        head = (parts[0] if len(parts) == 1 else torch.cat(parts))[: self.config.vocab_size]
        return Part({"model.norm.weight": self._same(last, "transformer.ln_f.weight"), "lm_head.weight": head})

    def layer(self, layer: int) -> Part:
        """A decoder layer."""
        # As the library shares layers out: like numpy.array_split.
        stages = torch.arange(self.config.num_hidden_layers).tensor_split(self.pp)
        stage = next(index for index, layers in enumerate(stages) if layer in layers)
        local = layer - int(stages[stage][0])
        return self._layer(range(stage * self.tp, (stage + 1) * self.tp), f"transformer.layers.{local}", layer)

    def _layer(self, ranks: range, name: str, layer: int) -> Part:
        part = Part()
        target = f"model.layers.{layer}"
        part.tensors[f"{target}.input_layernorm.weight"] = self._same(ranks, f"{name}.input_layernorm.weight")
        part.tensors[f"{target}.post_attention_layernorm.weight"] = self._same(ranks, f"{name}.post_layernorm.weight")
        cache = self.config.quantization.kv_cache_quant_algo
        if cache is not None:
            stored = f"{name}.attention.kv_cache_scaling_factor"
            scale = self._positive(self._same(ranks, stored), stored)
            part.kv_scales[layer] = KVScales(CACHES[cache], scale, scale)
        config = self.config
        query, key_value = (n * config.head_size for n in (config.num_attention_heads, config.num_key_value_heads))
        rows = (query // self.tp, key_value // self.tp, key_value // self.tp)
        qkv = tuple(f"{target}.self_attn.{projection}_proj" for projection in "qkv")
        self._linear(part, ranks, f"{name}.attention.qkv", qkv, rows)
        # The gated MLP: act(fc(x)) * gate(x). The published names call what is activated the gate.
        mlp = {"fc": "gate_proj", "gate": "up_proj"}
        for module, linear in mlp.items():
            self._linear(part, ranks, f"{name}.mlp.{module}", (f"{target}.mlp.{linear}",), None)
        for module, linear in {"attention.dense": "self_attn.o_proj", "mlp.proj": "mlp.down_proj"}.items():
            self._linear(part, ranks, f"{name}.{module}", (f"{target}.{linear}",), None, inputs=True)
        return part

    def _linear(
        self,
        part: Part,
        ranks: range,
        name: str,
        targets: tuple[str, ...],
        rows: Sequence[int] | None,
        inputs: bool = False,
    ) -> None:
        """Add one linear: `rows` of each GPU's share belong to each of `targets`; `inputs`: GPUs share its inputs."""
        quantization = self._quantization(name)
        shards = [self._shard(rank, name, quantization) for rank in ranks]
        split = [[shard] if rows is None else split_outputs(shard, rows) for shard in shards]
        for index, target in enumerate(targets):
            whole = join(name, [parts[index] for parts in split], inputs)
            if whole.bias is not None:
                part.tensors[f"{target}.bias"] = whole.bias
            if isinstance(whole.weight, Tensor):
                part.tensors[f"{target}.weight"] = whole.weight
            else:
                part.linears[target] = whole.weight

    def _shard(self, rank: int, name: str, quantization: Quantization) -> Shard:
        found = {
            key.removeprefix(f"{name}."): stored.read()
            for key, stored in self.files[rank].items()
            if key.startswith(f"{name}.")
        }
        where = f"{self.folder.name}/rank{rank}.safetensors: {name}"
        algorithm, group_size = quantization.quant_algo, quantization.group_size
        dtype, layout = getattr(torch, self.config.dtype), self.config.producer.kernel_layout
        shard = decode(where, found, algorithm, group_size, dtype, layout)
        problem = shard.weight.validate() if isinstance(shard.weight, QuantizedLinear) else None
        if problem is not None:
            raise self._bad(f"rank{rank}: {name}", "quantized values with positive, finite scales", problem)
        return shard

    def _quantization(self, name: str) -> Quantization:
        """Of one linear, by its full name on its pipeline stage."""
        if self.config.quantization.quant_algo == "MIXED_PRECISION":
            return self._layers.get(name, Quantization())
        excluded = name in self.config.quantization.exclude_modules
        return Quantization() if excluded else self.config.quantization

    @cached_property
    def _layers(self) -> dict[str, Quantization]:
        path, what = self.folder / "quant_cfg.json", "The quantization of a mixed checkpoint"
        try:
            text = read_regular_bytes(path)
        except OSError as error:
            raise BundleError(f"{what} cannot be read.", where=path, found=error, fix=_AGAIN) from error
        config = parse_json(_LayerConfig, text, BundleError, f"{what} is invalid", where=path, fix=_AGAIN)
        return config.quantized_layers

    def _same(self, ranks: range, name: str) -> Tensor:
        """A tensor that all these GPUs hold whole."""
        first, *others = (self._tensor(rank, name) for rank in ranks)
        if not all(torch.equal(first, other) for other in others):
            raise self._bad(name, "the same numbers on every GPU of a stage", "different ones")
        return first

    def _tensor(self, rank: int, name: str) -> Tensor:
        if name not in self.files[rank]:
            raise self._bad(f"rank{rank}.safetensors", name, "no such tensor")
        return self.files[rank][name].read()

    def _positive(self, scale: Tensor, name: str) -> float:
        value = float(scale)
        if not 0 < value < float("inf"):
            raise self._bad(name, "a positive, finite scale", value)
        return value

    def spec(self) -> LanguageSpec:
        """The model that the configuration describes."""
        config = self.config
        fields = {
            "hidden_size": config.hidden_size,
            "num_layers": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": config.head_size,
            "intermediate_size": config.intermediate_size,
            "vocab_size": config.vocab_size,
            "rms_norm_eps": config.norm_epsilon,
            "rope_theta": config.rotary_base,
            "rope_scaling": self._rope_scaling(),
            "max_position_embeddings": config.max_position_embeddings,
            "tie_word_embeddings": False,
        }
        path, what = self.folder / "config.json", "The checkpoint's config is invalid"
        return parse_fields(LanguageSpec, fields, BundleError, what, where=path, fix=_AGAIN)

    def _rope_scaling(self) -> RopeScaling | None:
        scaling = self.config.rotary_scaling
        return None if scaling is None else RopeScaling(type="linear", factor=scaling.factor)

    def _bad(self, where: str, expected: object, found: object) -> BundleError:
        what = "The TensorRT-LLM checkpoint is incomplete or damaged."
        return BundleError(what, where=f"{self.folder}: {where}", expected=expected, found=found, fix=_AGAIN)
