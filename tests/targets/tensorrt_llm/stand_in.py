"""Stand-ins for TensorRT-LLM that take only what it takes and really answer: a model computes, greedily.

Written from what the library's sources say (1.0 to 1.2), apart from our adapters:

* `Executor`: cpp/tensorrt_llm/nanobind/executor/{request,executor,executorConfig}.cpp for names and for what is given
  by keyword only, executor/samplingConfig.cpp for ranges. Ids from the vocabulary's size on are rows of the prompt
  table; blocks of the cache are found again by ids and extra ids; a response brings new tokens only, without the end
  token and with the stop word.
* `Llm`: tensorrt_llm/llmapi/llm.py. It wants an end token where it has no tokenizer, tells all tokens with every step,
  and drops image embeddings with token ids unless its input processor takes them.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from r1v_export.reference.model import Model, ReferenceEngine
from r1v_export.runner.kv_cache import KVCache

FinishReason = enum.Enum("FinishReason", "NOT_FINISHED END_ID STOP_WORDS LENGTH TIMED_OUT CANCELLED")


@dataclass
class SamplingConfig:
    beam_width: int = 1
    top_k: int | None = field(default=None, kw_only=True)
    top_p: float | None = field(default=None, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True)
    repetition_penalty: float | None = field(default=None, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        assert self.beam_width == 1
        assert self.top_k is None or (type(self.top_k) is int and self.top_k >= 0)
        assert self.top_p is None or 0 < self.top_p <= 1
        assert self.temperature is None or self.temperature >= 0
        assert self.repetition_penalty is None or self.repetition_penalty > 0
        assert self.seed is None or (type(self.seed) is int and 0 <= self.seed < 2**64)

    @property
    def greedy(self) -> bool:
        """Both default to 0 in the library, and so mean the most likely token."""
        return self.top_k == 1 or (self.top_k in (None, 0) and self.top_p is None)


@dataclass
class OutputConfig:
    exclude_input_from_output: bool = False


@dataclass
class PromptTuningConfig:
    embedding_table: torch.Tensor
    input_token_extra_ids: list[int] | None = None

    def __post_init__(self) -> None:
        assert isinstance(self.embedding_table, torch.Tensor)
        assert self.embedding_table.ndim == 2
        assert self.embedding_table.is_contiguous()
        for extra in self.input_token_extra_ids or []:
            assert type(extra) is int
            assert 0 <= extra < 2**64


@dataclass
class Request:
    input_token_ids: list[int]
    max_tokens: int
    streaming: bool = field(default=False, kw_only=True)
    sampling_config: SamplingConfig = field(default_factory=SamplingConfig, kw_only=True)
    output_config: OutputConfig = field(default_factory=OutputConfig, kw_only=True)
    end_id: int | None = field(default=None, kw_only=True)
    pad_id: int | None = field(default=None, kw_only=True)
    stop_words: list[list[int]] | None = field(default=None, kw_only=True)
    prompt_tuning_config: PromptTuningConfig | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        assert self.input_token_ids
        assert all(type(token) is int for token in self.input_token_ids)
        assert type(self.max_tokens) is int
        assert self.max_tokens > 0
        assert all(word and all(type(token) is int for token in word) for word in self.stop_words or [])


@dataclass
class KvCacheConfig:
    enable_block_reuse: bool = True


@dataclass
class OrchestratorConfig:
    is_orchestrator: bool = True
    worker_executable_path: str = ""


@dataclass
class ParallelConfig:
    communication_type: Any
    communication_mode: Any
    device_ids: list[int] | None = None
    participant_ids: list[int] | None = None
    orchestrator_config: OrchestratorConfig | None = None


@dataclass
class ExecutorConfig:
    max_beam_width: int = 1
    kv_cache_config: KvCacheConfig = field(default_factory=KvCacheConfig)
    parallel_config: ParallelConfig | None = None


class Decoding:
    """One request: the model's next token, again and again."""

    def __init__(self, model: Model, embeds_SE: np.ndarray, most: int) -> None:
        self.engine = ReferenceEngine(model)
        self.cache = KVCache(self.engine.decoder(1, len(embeds_SE) + most))
        self.logits = self.cache.append(embeds_SE[None], np.array([len(embeds_SE)]))[0]

    def next(self, greedy: bool, random: np.random.Generator) -> int:
        if greedy:
            token = int(self.logits.argmax())
        else:
            weights = np.exp(self.logits - self.logits.max()).astype(np.float64)
            token = int(random.choice(len(weights), p=weights / weights.sum()))
        none = np.zeros((1, self.engine.sizes.hidden), dtype=np.float32)
        embeds = self.engine.embed(np.array([[token]]), none)
        self.logits = self.cache.append(embeds, np.array([1]))[0]
        return token


class Executor:
    """Answers one token to a request each time it is asked about it, and nothing the first time.

    Args:
        model: what computes.
        dtype: that the engine takes tables in.
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32, config: ExecutorConfig | None = None) -> None:
        self.model, self.dtype, self.config = model, dtype, config or ExecutorConfig()
        self.requests: list[Request] = []
        self.working: dict[int, tuple[Request, Decoding, list[int]]] = {}
        self.cancelled: list[int] = []
        self.open_at_once = 0
        self.fail: str | None = None
        self.refuse: str | None = None
        self._blocks: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
        self._asked: set[int] = set()

    def enqueue_request(self, request: Request) -> int:
        assert isinstance(request, Request)
        if self.refuse:
            raise RuntimeError(self.refuse)
        self.requests.append(request)
        number = len(self.requests)
        self.working[number] = request, Decoding(self.model, self._embeds(request), request.max_tokens), []
        self.open_at_once = max(self.open_at_once, len(self.working))
        return number

    def _embeds(self, request: Request) -> np.ndarray:
        """Of the prompt. Where a token stands behind the same ones as before, with the same extra ids, what the cache
        holds is taken."""
        ids, vocab = request.input_token_ids, self.model.spec.language.vocab_size
        table, extra = np.zeros((0, self.model.spec.language.hidden_size), np.float32), [0] * len(ids)
        if request.prompt_tuning_config is not None:
            tensor = request.prompt_tuning_config.embedding_table
            assert tensor.dtype == self.dtype
            assert tensor.shape[1] == table.shape[1]
            table = tensor.float().numpy()
            if self.config.kv_cache_config.enable_block_reuse:
                assert request.prompt_tuning_config.input_token_extra_ids is not None
            extra = request.prompt_tuning_config.input_token_extra_ids or extra
            assert len(extra) == len(ids)
        assert all(0 <= token < vocab + len(table) for token in ids)
        words = self.model.language_model.model.embed_tokens.weight.detach().float().numpy()
        rows = [words[token] if token < vocab else table[token - vocab] for token in ids]
        if not self.config.kv_cache_config.enable_block_reuse:
            return np.stack(rows)
        pairs = tuple(zip(ids, extra, strict=True))
        return np.stack([self._blocks.setdefault(pairs[: i + 1], row) for i, row in enumerate(rows)])

    def await_responses(self, id: int, timeout: timedelta | None = None) -> list[Any]:
        assert isinstance(timeout, timedelta)
        request, decoding, given = self.working[id]
        if id not in self._asked:
            self._asked.add(id)
            return []
        if self.fail:
            del self.working[id]
            return [SimpleNamespace(request_id=id, has_error=lambda: True, error_msg=self.fail)]
        random = np.random.default_rng([request.sampling_config.seed or 0, len(given)])
        token = decoding.next(request.sampling_config.greedy, random)
        given.append(token)
        reason = FinishReason.NOT_FINISHED
        if token == request.end_id:
            reason = FinishReason.END_ID
        elif [token] in (request.stop_words or []):
            reason = FinishReason.STOP_WORDS
        elif len(given) == request.max_tokens:
            reason = FinishReason.LENGTH
        final = reason is not FinishReason.NOT_FINISHED
        if final:
            del self.working[id]
        new = [] if reason is FinishReason.END_ID else [token]
        result = SimpleNamespace(output_token_ids=[new], is_final=final, finish_reasons=[reason])
        return [SimpleNamespace(request_id=id, has_error=lambda: False, result=result)]

    def cancel_request(self, id: int) -> None:
        del self.working[id]
        self.cancelled.append(id)


def bindings(model: Model, dtype: torch.dtype = torch.float32) -> Any:
    """`tensorrt_llm.bindings.executor`; its `opened` are the executors that were opened, with the folders."""
    opened: list[tuple[str, Executor]] = []

    def open_(model_path: str, model_type: str, executor_config: ExecutorConfig) -> Executor:
        assert isinstance(model_path, str)
        assert (Path(model_path) / "rank0.engine").is_file()
        assert model_type == "DECODER_ONLY"
        opened.append((model_path, Executor(model, dtype, executor_config)))
        return opened[-1][1]

    module = ModuleType("tensorrt_llm.bindings.executor")
    for part in (SamplingConfig, OutputConfig, PromptTuningConfig, Request, KvCacheConfig, ExecutorConfig):
        setattr(module, part.__name__, part)
    for part in (ParallelConfig, OrchestratorConfig):
        setattr(module, part.__name__, part)
    module.Executor = open_
    module.ModelType = SimpleNamespace(DECODER_ONLY="DECODER_ONLY")
    module.CommunicationType = SimpleNamespace(MPI="MPI")
    module.CommunicationMode = SimpleNamespace(ORCHESTRATOR="ORCHESTRATOR", LEADER="LEADER")
    module.opened = opened
    return module


@dataclass(kw_only=True)
class SamplingParams:
    max_tokens: int
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    end_id: int | None = None
    pad_id: int | None = None
    stop_token_ids: list[int] | None = None
    detokenize: bool = True


class Llm:
    """`tensorrt_llm.LLM`.

    Args:
        takes_embeddings: whether its input processor takes image embeddings with token ids.
    """

    def __init__(self, model: Model, takes_embeddings: bool = True, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.dtype = model, dtype
        self.input_processor = SimpleNamespace(supports_token_id_mm_expansion=takes_embeddings)
        self.asked: list[tuple[dict[str, Any], SamplingParams]] = []
        self.outputs: list[RequestOutput] = []

    def generate_async(
        self, inputs: dict[str, Any], sampling_params: SamplingParams | None = None, streaming: bool = False
    ) -> RequestOutput:
        assert streaming
        assert isinstance(sampling_params, SamplingParams)
        if sampling_params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        assert set(inputs) <= {"prompt_token_ids", "multi_modal_embeddings"}
        self.asked.append((inputs, sampling_params))
        self.outputs.append(RequestOutput(self._decoding(inputs, sampling_params), sampling_params))
        return self.outputs[-1]

    def _decoding(self, inputs: dict[str, Any], sampling_params: SamplingParams) -> Decoding:
        engine, ids = ReferenceEngine(self.model), np.array([inputs["prompt_token_ids"]])
        images = [torch.zeros((int((ids == self.model.spec.image_token_id).sum()), engine.sizes.hidden))]
        if self.input_processor.supports_token_id_mm_expansion:
            images = inputs.get("multi_modal_embeddings", {}).get("image", images)
            assert all(image.dtype == self.dtype and image.ndim == 2 for image in images)
        embeds = engine.embed(ids, torch.cat(images).float().numpy())
        return Decoding(self.model, embeds[0], sampling_params.max_tokens)


class RequestOutput:
    """All tokens so far with every step; neither the end token nor the one that stopped."""

    def __init__(self, decoding: Decoding, sampling_params: SamplingParams) -> None:
        self.decoding, self.params = decoding, sampling_params
        self.aborted = False

    def __iter__(self) -> Iterator[Any]:
        tokens: list[int] = []
        while True:
            token = self.decoding.next(True, np.random.default_rng(0))
            stops = token in (self.params.stop_token_ids or [])
            if token == self.params.end_id or stops:
                yield _output(tokens, "stop", token if stops else None)
                return
            tokens = [*tokens, token]
            if len(tokens) == self.params.max_tokens:
                yield _output(tokens, "length", None)
                return
            yield _output(tokens, None, None)

    def abort(self) -> None:
        self.aborted = True


def _output(tokens: list[int], finish_reason: str | None, stop_reason: int | None) -> Any:
    answer = SimpleNamespace(token_ids=tokens, finish_reason=finish_reason, stop_reason=stop_reason)
    return SimpleNamespace(outputs=[answer])


def install(monkeypatch: pytest.MonkeyPatch, model: Model, version: str = "1.2.0", **llm: Any) -> Any:
    """Put the stand-ins where imports find them, on a machine with eight GPUs; the module `tensorrt_llm`."""
    package = ModuleType("tensorrt_llm")
    package.__version__, package.__file__ = version, "/site-packages/tensorrt_llm/__init__.py"
    package.SamplingParams, package.loaded, weights = SamplingParams, [], model

    def load(model: str, tensor_parallel_size: int, skip_tokenizer_init: bool) -> Llm:
        assert skip_tokenizer_init
        assert (Path(model) / "config.json").is_file()
        package.loaded.append((model, tensor_parallel_size))
        return Llm(weights, **llm)

    package.LLM = load
    executor = bindings(model)
    for name, module in {"": package, ".bindings": ModuleType("bindings"), ".bindings.executor": executor}.items():
        monkeypatch.setitem(sys.modules, f"tensorrt_llm{name}", module)
    package.executor = executor
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    return package
