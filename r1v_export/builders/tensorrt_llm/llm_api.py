"""A unified checkpoint through TensorRT-LLM's LLM API (1.2 and later, the PyTorch backend)."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from r1v_export.builders.tensorrt_llm.executor import Choice, Generated
from r1v_export.builders.tensorrt_llm.prompt_table import Picture
from r1v_export.errors import CapabilityError, GraphError


class Library(Protocol):
    """What is used of `tensorrt_llm`."""

    LLM: Any
    SamplingParams: Any


class LlmApiSession:
    """Generates with one model.

    Args:
        llm: of `open_llm`.
        library: the module that it comes from.
        dtype: of the model, for image embeddings.
    """

    def __init__(self, llm: Any, library: Library, dtype: torch.dtype) -> None:
        self.llm, self.library, self.dtype = llm, library, dtype

    def generate(
        self,
        token_ids: list[int],
        pictures: list[Picture],
        choice: Choice,
        stop_ids: frozenset[int],
        cancel: threading.Event | None = None,
    ) -> Iterator[Generated]:
        """Tokens as they are made. Arguments and errors as in `ExecutorSession`;
        `token_ids` has an image token for every embedding."""
        cancel = cancel or threading.Event()
        request: dict[str, Any] = {"prompt_token_ids": token_ids}
        if pictures:
            embeds = [torch.from_numpy(picture.embeds).to(self.dtype) for picture in pictures]
            request["multi_modal_embeddings"] = {"image": embeds}
        output = self.llm.generate_async(request, self._sampling(choice, stop_ids), streaming=True)
        told = 0
        try:
            for step in output:
                if cancel.is_set():
                    yield Generated([], "cancelled")
                    return
                answer = step.outputs[0]
                new = [token for token in map(int, answer.token_ids[told:]) if token not in stop_ids]
                told = len(answer.token_ids)
                reason = answer.finish_reason
                yield Generated(new, None if reason is None else "length" if reason == "length" else "stop")
                if reason is not None:
                    return
        except RuntimeError as error:
            raise GraphError("TensorRT-LLM failed on a request.", where="LLM", found=error) from error
        finally:
            if not output.finished:
                output.abort()

    def _sampling(self, choice: Choice, stop_ids: frozenset[int]) -> Any:
        return self.library.SamplingParams(
            max_tokens=choice.max_new_tokens,
            temperature=choice.temperature,
            top_k=1 if choice.temperature == 0 else choice.top_k,
            top_p=choice.top_p,
            repetition_penalty=choice.repetition_penalty,
            seed=choice.seed,
            stop_token_ids=sorted(stop_ids),
            detokenize=False,
        )


def open_llm(checkpoint: Path, tp: int = 1) -> tuple[Any, Library]:
    """The model of a unified checkpoint's folder, over `tp` GPUs.

    Raises:
        CapabilityError: TensorRT-LLM is not installed, or does not load the checkpoint.
    """
    try:
        library: Any = importlib.import_module("tensorrt_llm")
    except ImportError as error:
        raise CapabilityError(
            "TensorRT-LLM is not installed.",
            expected="tensorrt-llm 1.2 or later",
            found=error,
            fix="use an environment of its own",
        ) from error
    try:
        return library.LLM(model=str(checkpoint), tensor_parallel_size=tp, skip_tokenizer_init=True), library
    except (RuntimeError, ValueError) as error:
        raise CapabilityError(
            "TensorRT-LLM does not load the checkpoint.", where=checkpoint, found=str(error).splitlines()[0]
        ) from error
