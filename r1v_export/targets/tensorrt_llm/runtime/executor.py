"""A TensorRT-LLM engine through its executor: prompts in, tokens out as they are made.

TensorRT-LLM is imported when an engine is opened. What is used of it is that of its 1.0 to 1.2 bindings
(`tensorrt_llm.bindings.executor`; cpp/tensorrt_llm/nanobind/executor in its sources, examples/bindings/executor):

* Argument names and kinds are those of the bindings. Ids from the vocabulary's size on are rows of the table.
* A streamed response brings the new tokens alone. The end token is not among them, a stop word is.
* Neither top_k nor top_p means greedy there (both default to 0), so drawing always names both.
"""

from __future__ import annotations

import importlib
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch

from r1v_export.errors import CapabilityError, GraphError, InputError, UsageError
from r1v_export.generation import EncodedImage, FinishReason, Generated, Sampling, require_unused
from r1v_export.targets.tensorrt_llm import library as tensorrt_llm
from r1v_export.targets.tensorrt_llm.build.command import EngineSizes, reuses_blocks
from r1v_export.targets.tensorrt_llm.checkpoint.reader import Config
from r1v_export.targets.tensorrt_llm.runtime.open_request import OpenRequest
from r1v_export.targets.tensorrt_llm.runtime.prompt_table import TablePrompt

WAIT = timedelta(milliseconds=50)
"""How long to wait for a response before checking `cancel` or another request."""

MOST_TOP_K = 1024
"""The library clips larger ones without saying so."""

_REASONS: dict[str, FinishReason] = {
    "END_ID": "stop",
    "STOP_WORDS": "stop",
    "LENGTH": "length",
    "CANCELLED": "cancelled",
}


class Bindings(Protocol):
    """What is used of `tensorrt_llm.bindings.executor`."""

    Executor: Any
    ExecutorConfig: Any
    KvCacheConfig: Any
    ParallelConfig: Any
    OrchestratorConfig: Any
    CommunicationType: Any
    CommunicationMode: Any
    ModelType: Any
    Request: Any
    SamplingConfig: Any
    OutputConfig: Any
    PromptTuningConfig: Any


class Executor(Protocol):
    """What is used of its `Executor`."""

    def enqueue_request(self, request: Any) -> int:
        """Enqueue a request and return its id."""
        ...

    def await_responses(self, id: int, timeout: timedelta) -> Sequence[Any]:
        """Return the responses of a request that arrive within `timeout`."""
        ...

    def cancel_request(self, id: int) -> None:
        """Cancel a request."""
        ...


class ExecutorSession:
    """A `generation.Generator` over one engine. The executor batches requests that are open at a time, also those of
    several threads.

    Args:
        executor: of `open_executor`.
        bindings: the module that it comes from.
        config: of the checkpoint that the engine was built from.
        sizes: that it was built for.
        image_token_id: what stands for a row of an image in prompts.
    """

    name = "tensorrt-llm executor"

    def __init__(
        self, executor: Executor, bindings: Bindings, config: Config, sizes: EngineSizes, image_token_id: int
    ) -> None:
        self.executor, self.bindings, self.config, self.sizes = executor, bindings, config, sizes
        self.image_token_id, self.max_tokens = image_token_id, sizes.max_seq_len

    def generate(
        self,
        token_ids: Sequence[int],
        images: Sequence[EncodedImage],
        sampling: Sampling,
        stop_ids: frozenset[int],
        cancel: threading.Event,
    ) -> ExecutorGeneration:
        config = self.config
        prompt = TablePrompt.of(token_ids, images, self.image_token_id, config.vocab_size, config.hidden_size)
        self._check(prompt, sampling)
        # The executor knows one end token; the others are stop words of one token.
        ends: list[int | None] = [*sorted(stop_ids)] or [None]
        end_id, *others = ends
        with _library_errors():
            request = self.bindings.Request(
                input_token_ids=prompt.token_ids,
                max_tokens=sampling.max_new_tokens,
                streaming=True,
                sampling_config=self._sampling(sampling),
                output_config=self.bindings.OutputConfig(exclude_input_from_output=True),
                end_id=end_id,
                pad_id=end_id,
                stop_words=[[token] for token in others] or None,
                prompt_tuning_config=self._table(prompt),
            )
            request_id = self.executor.enqueue_request(request)
        return ExecutorGeneration(self.executor, request_id, end_id, cancel)

    def _check(self, prompt: TablePrompt, sampling: Sampling) -> None:
        sizes, tokens = self.sizes, len(prompt.token_ids)
        limits = {
            "prompt tokens": (tokens, min(sizes.max_input_len, sizes.max_num_tokens)),
            "tokens of prompt and answer": (tokens + sampling.max_new_tokens, sizes.max_seq_len),
            "image tokens": (len(prompt.table), sizes.max_multimodal_len // sizes.max_batch_size),
        }
        for what, (found, most) in limits.items():
            if found > most:
                raise InputError(
                    f"The request has more {what} than the engine was built for.",
                    where="request",
                    expected=f"at most {most}",
                    found=found,
                    fix="ask for less, or build an engine with larger sizes (tensorrt_llm in the build file)",
                )
        # Its penalties count the prompt's tokens too.
        penalties = ("presence_penalty", "frequency_penalty")
        names = (*penalties, "logit_bias", "logprobs", "max_reasoning_tokens", "min_p", "guide")
        require_unused(sampling, names, "TensorRT-LLM's executor")
        if not sampling.greedy and sampling.top_k > MOST_TOP_K:
            raise UsageError(
                "TensorRT-LLM does not support this top_k.",
                where="sampling.top_k",
                expected=f"at most {MOST_TOP_K}, or 0 for all",
                found=sampling.top_k,
                fix=f"choose a top_k of at most {MOST_TOP_K}, or 0",
            )

    def _table(self, prompt: TablePrompt) -> Any:
        if not len(prompt.table):
            return None
        table = torch.from_numpy(prompt.table).to(getattr(torch, self.config.dtype)).contiguous()
        return self.bindings.PromptTuningConfig(embedding_table=table, input_token_extra_ids=prompt.extra_ids)

    def _sampling(self, sampling: Sampling) -> Any:
        penalty = None if sampling.repetition_penalty == 1 else sampling.repetition_penalty
        if sampling.greedy:
            return self.bindings.SamplingConfig(beam_width=1, top_k=1, repetition_penalty=penalty)
        return self.bindings.SamplingConfig(
            beam_width=1,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            temperature=sampling.temperature,
            repetition_penalty=penalty,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
        )


class ExecutorGeneration(OpenRequest):
    """The answer to one request, read from the executor as it is generated.

    Args:
        end_id: the token that ends the answer without being among its tokens.
    """

    def __init__(self, executor: Executor, request_id: int, end_id: int | None, cancel: threading.Event) -> None:
        super().__init__(cancel)
        self._executor, self._id, self._end_id = executor, request_id, end_id

    def _next(self) -> Generated:
        tokens: list[int] = []
        with _library_errors():
            for response in self._executor.await_responses(self._id, timeout=WAIT):
                if response.has_error():
                    self._finished = True
                    raise GraphError("TensorRT-LLM failed on a request.", where="executor", found=response.error_msg)
                tokens += map(int, response.result.output_token_ids[0])
                if response.result.is_final:
                    return self._last(tokens, response.result.finish_reasons[0].name)
        return Generated(tokens)

    def _last(self, tokens: list[int], reason: str) -> Generated:
        self._finished = True
        if reason not in _REASONS:
            raise GraphError("TensorRT-LLM aborted the request.", where="executor", found=reason)
        if reason == "END_ID" and self._end_id is not None and tokens[-1:] != [self._end_id]:
            tokens.append(self._end_id)
        return Generated(tokens, _REASONS[reason])

    def _give_up(self) -> None:
        self._executor.cancel_request(self._id)


@contextmanager
def _library_errors() -> Iterator[None]:
    """Convert the library's errors, all of which are RuntimeError or ValueError, into ours."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise GraphError("TensorRT-LLM raised an error.", where="executor", found=error) from error


def require_executor(config: Config) -> Any:
    """The package `tensorrt_llm`, on a machine that can run an engine of this checkpoint as far as is known before.

    Raises:
        CapabilityError: TensorRT-LLM is missing or of another version, or there are fewer GPUs than ranks.
    """
    package = tensorrt_llm.load(tensorrt_llm.ENGINES, tensorrt_llm.ENGINES_TEXT)
    tensorrt_llm.require_gpus(config.mapping.world_size)
    return package


def open_executor(engine: Path, config: Config) -> tuple[Executor, Bindings]:
    """The executor of an engine folder, over as many GPUs as the engine has ranks. Where the engine allows it, prompts
    that begin alike are computed once.

    It takes nine tenths of the GPU memory that is free for its cache, so whatever else needs some comes first.

    Raises:
        CapabilityError: TensorRT-LLM or GPUs are missing, or it cannot open the engine here.
    """
    package = require_executor(config)
    bindings: Any = importlib.import_module("tensorrt_llm.bindings.executor")
    options = {
        "max_beam_width": 1,
        "kv_cache_config": bindings.KvCacheConfig(enable_block_reuse=reuses_blocks(config)),
    }
    if config.mapping.world_size > 1:
        options["parallel_config"] = _one_process_each(bindings, Path(package.__file__).parent)
    try:
        executor_config = bindings.ExecutorConfig(**options)
        return bindings.Executor(str(engine), bindings.ModelType.DECODER_ONLY, executor_config), bindings
    except RuntimeError as error:
        raise CapabilityError(
            "TensorRT-LLM cannot open the engine here.",
            where=engine,
            found=str(error).splitlines()[0],
            fix="an engine runs on the kind of GPU and the version that it was built for: r1v-export engine",
        ) from error


def _one_process_each(bindings: Any, package: Path) -> Any:
    """The library starts a worker of its own for each rank, and this process stays the only one that the user sees."""
    worker = package / "bin" / "executorWorker"
    return bindings.ParallelConfig(
        bindings.CommunicationType.MPI,
        bindings.CommunicationMode.ORCHESTRATOR,
        orchestrator_config=bindings.OrchestratorConfig(is_orchestrator=True, worker_executable_path=str(worker)),
    )
