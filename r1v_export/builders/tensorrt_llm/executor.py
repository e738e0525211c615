"""A TensorRT-LLM engine through its executor: prompts in, tokens out as they are made.

TensorRT-LLM is imported when an engine is opened. Until then, and in tests, `Library` says all that is used of it.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from r1v_export.builders.tensorrt_llm.command import EngineSizes
from r1v_export.builders.tensorrt_llm.prompt_table import TablePrompt
from r1v_export.builders.tensorrt_llm.reader import Config
from r1v_export.errors import CapabilityError, GraphError, InputError

WAIT = timedelta(milliseconds=200)
"""How long a response is waited for before `cancel` is looked at again."""


class Library(Protocol):
    """What is used of `tensorrt_llm.bindings.executor`."""

    Request: Any
    SamplingConfig: Any
    OutputConfig: Any
    PromptTuningConfig: Any


class Executor(Protocol):
    """What is used of its `Executor`."""

    def enqueue_request(self, request: Any) -> int: ...

    def await_responses(self, request_id: int, timeout: timedelta) -> Sequence[Any]: ...

    def cancel_request(self, request_id: int) -> None: ...


@dataclass(frozen=True)
class Choice:
    """How tokens are chosen; temperature 0 takes the most likely one."""

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Generated:
    """Tokens as they came, without the one that stopped; `finish_reason` with the last ones."""

    token_ids: list[int]
    finish_reason: Literal["stop", "length", "cancelled"] | None = None


class ExecutorSession:
    """Generates with one engine. Requests of several threads are batched by the executor.

    Args:
        executor: of `open_executor`.
        library: the module that it comes from.
        config: of the checkpoint that the engine was built from.
        sizes: that it was built for.
    """

    def __init__(self, executor: Executor, library: Library, config: Config, sizes: EngineSizes) -> None:
        self.executor, self.library, self.config, self.sizes = executor, library, config, sizes

    def generate(
        self, prompt: TablePrompt, choice: Choice, stop_ids: frozenset[int], cancel: threading.Event | None = None
    ) -> Iterator[Generated]:
        """Tokens as they are made.

        Args:
            stop_ids: tokens that end the answer.
            cancel: once set, from any thread, the request is given up.

        Raises:
            InputError: the prompt does not fit into the engine.
            GraphError: the engine refuses or fails.
        """
        self._check(prompt, choice)
        cancel = cancel or threading.Event()
        request_id = self.executor.enqueue_request(self._request(prompt, choice, stop_ids))
        finished = False
        try:
            while not finished:
                if cancel.is_set():
                    yield Generated([], "cancelled")
                    return
                for response in self.executor.await_responses(request_id, WAIT):
                    generated = _read(response, stop_ids)
                    finished = generated.finish_reason is not None
                    yield generated
        finally:
            # Also where the caller stopped listening: the GPU must not go on for nobody.
            if not finished:
                self.executor.cancel_request(request_id)

    def _check(self, prompt: TablePrompt, choice: Choice) -> None:
        sizes, tokens = self.sizes, len(prompt.token_ids)
        limits = {
            "prompt tokens": (tokens, sizes.max_input_len),
            "tokens of prompt and answer": (tokens + choice.max_new_tokens, sizes.max_seq_len),
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

    def _request(self, prompt: TablePrompt, choice: Choice, stop_ids: frozenset[int]) -> Any:
        stops: list[int | None] = [*sorted(stop_ids)] or [None]
        first, *others = stops
        return self.library.Request(
            input_token_ids=prompt.token_ids,
            max_tokens=choice.max_new_tokens,
            streaming=True,
            sampling_config=self._sampling(choice),
            output_config=self.library.OutputConfig(exclude_input_from_output=True),
            end_id=first,
            pad_id=first,
            stop_words=[[token] for token in others] or None,
            prompt_tuning_config=self._table(prompt),
        )

    def _table(self, prompt: TablePrompt) -> Any:
        if not len(prompt.table):
            return None
        table = torch.from_numpy(prompt.table).to(getattr(torch, self.config.dtype)).contiguous()
        return self.library.PromptTuningConfig(embedding_table=table, input_token_extra_ids=prompt.extra_ids)

    def _sampling(self, choice: Choice) -> Any:
        if choice.temperature == 0:
            return self.library.SamplingConfig(beam_width=1, top_k=1, repetition_penalty=choice.repetition_penalty)
        return self.library.SamplingConfig(
            beam_width=1,
            top_k=choice.top_k,
            top_p=choice.top_p,
            temperature=choice.temperature,
            repetition_penalty=choice.repetition_penalty,
            seed=choice.seed,
        )


def _read(response: Any, stop_ids: frozenset[int]) -> Generated:
    if response.has_error():
        raise GraphError("TensorRT-LLM failed on a request.", where="executor", found=response.error_msg)
    result = response.result
    # Whether the token that stopped is among them depends on the version and on how it was given.
    token_ids = [token for token in map(int, result.output_token_ids[0]) if token not in stop_ids]
    if not result.is_final:
        return Generated(token_ids)
    too_long = "LENGTH" in str(result.finish_reasons[0]).upper()
    return Generated(token_ids, "length" if too_long else "stop")


def open_executor(engine: Path) -> tuple[Executor, Library]:
    """The executor of an engine folder. Block reuse is on: prompts that begin alike are computed once.

    An engine for several GPUs is opened in as many processes: `mpirun -n RANKS python ...`.

    Raises:
        CapabilityError: TensorRT-LLM is not installed, or cannot open the engine here.
    """
    try:
        importlib.import_module("tensorrt_llm")  # Registers its plugins with TensorRT.
        library = importlib.import_module("tensorrt_llm.bindings.executor")
    except ImportError as error:
        raise CapabilityError(
            "TensorRT-LLM is not installed.",
            expected="tensorrt-llm 1.0 to 1.2",
            found=error,
            fix="use an environment of its own: pip install 'r1v-export[tensorrt-llm]'",
        ) from error
    cache = library.KvCacheConfig(enable_block_reuse=True)
    config = library.ExecutorConfig(max_beam_width=1, kv_cache_config=cache)
    try:
        return library.Executor(str(engine), library.ModelType.DECODER_ONLY, config), library
    except RuntimeError as error:
        raise CapabilityError(
            "TensorRT-LLM cannot open the engine here.",
            where=engine,
            found=str(error).splitlines()[0],
            fix="an engine runs on the kind of GPU and the version that it was built for: r1v-export engine",
        ) from error
