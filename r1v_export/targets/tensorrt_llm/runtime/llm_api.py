"""A unified checkpoint through TensorRT-LLM's LLM API, its PyTorch backend.

What is used of it follows tensorrt_llm/llmapi/llm.py of 1.2, and of main as far as it could be read:

* Without a tokenizer of its own (we tokenize) a request must name its end token, -1 for none.
* Image embeddings passed with token ids reach the model only where its input processor says that it takes token ids
  (`supports_token_id_mm_expansion`, after 1.2). Elsewhere they are dropped without a word, so images are refused.
* That backend has no model of this family up to its 1.3 pre-releases (TensorRT-LLM's issue 4225): `open_llm` says so.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

import torch

from r1v_export.errors import CapabilityError, GraphError
from r1v_export.generation import EncodedImage, FinishReason, Generated, Sampling, require_unused
from r1v_export.targets.tensorrt_llm import library as tensorrt_llm
from r1v_export.targets.tensorrt_llm.runtime.open_request import OpenRequest

_NO_END = -1


class Library(Protocol):
    """What is used of `tensorrt_llm`."""

    LLM: Any
    SamplingParams: Any


class LlmApiSession:
    """A `generation.Generator` over one model. Requests that are open at a time are batched by the library.

    Args:
        llm: of `open_llm`.
        library: the module that it comes from.
        dtype: of the model, for image embeddings.
        max_tokens: of a prompt and its answer.
    """

    name = "tensorrt-llm llm-api"

    def __init__(self, llm: Any, library: Library, dtype: torch.dtype, max_tokens: int) -> None:
        self.llm, self.library, self.dtype, self.max_tokens = llm, library, dtype, max_tokens

    def generate(
        self,
        token_ids: Sequence[int],
        images: Sequence[EncodedImage],
        sampling: Sampling,
        stop_ids: frozenset[int],
        cancel: threading.Event,
    ) -> LlmApiGeneration:
        self._check(images, sampling)
        request: dict[str, Any] = {"prompt_token_ids": list(token_ids)}
        if images:
            embeds = [torch.from_numpy(image.embeds).to(self.dtype) for image in images]
            request["multi_modal_embeddings"] = {"image": embeds}
        end_id, *others = sorted(stop_ids) or [_NO_END]
        try:
            output = self.llm.generate_async(request, self._sampling(sampling, end_id, others), streaming=True)
        except (RuntimeError, ValueError) as error:
            raise GraphError("TensorRT-LLM refuses a request.", where="LLM", found=error) from error
        return LlmApiGeneration(output, end_id, cancel)

    def _check(self, images: Sequence[EncodedImage], sampling: Sampling) -> None:
        processor = getattr(self.llm, "input_processor", None)
        if images and not getattr(processor, "supports_token_id_mm_expansion", False):
            raise CapabilityError(
                "This TensorRT-LLM would ignore the images.",
                where="LLM API",
                expected="a model whose input processor takes image embeddings with token ids",
                found=type(processor).__name__,
                fix="build an engine (--target tensorrt-llm, r1v-export engine), or ask without images",
            )
        # Of 1.2's two samplers the default one ignores the penalties.
        penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
        names = (*penalties, "logit_bias", "logprobs", "max_reasoning_tokens", "min_p", "guide")
        require_unused(sampling, names, "The LLM API with its default sampler")

    def _sampling(self, sampling: Sampling, end_id: int, others: list[int]) -> Any:
        return self.library.SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=None if sampling.greedy else sampling.temperature,
            top_k=1 if sampling.greedy else sampling.top_k,
            top_p=None if sampling.greedy else sampling.top_p,
            seed=sampling.seed,
            end_id=end_id,
            pad_id=end_id,
            stop_token_ids=others or None,
            detokenize=False,
        )


class LlmApiGeneration(OpenRequest):
    """Each step waits for the next token, however long that takes, and `cancel` is checked between them."""

    def __init__(self, output: Any, end_id: int, cancel: threading.Event) -> None:
        super().__init__(cancel)
        self._output, self._end_id = output, end_id
        self._steps = iter(output)
        self._reported = 0

    def _next(self) -> Generated:
        try:
            answer = next(self._steps).outputs[0]
        except (RuntimeError, ValueError) as error:
            self._finished = True
            raise GraphError("TensorRT-LLM failed on a request.", where="LLM", found=error) from error
        tokens = [int(token) for token in answer.token_ids[self._reported :]]
        self._reported = len(answer.token_ids)
        if answer.finish_reason is None:
            return Generated(tokens)
        return self._last(tokens, answer)

    def _last(self, tokens: list[int], answer: Any) -> Generated:
        self._finished = True
        reason: FinishReason = answer.finish_reason
        if reason not in get_args(FinishReason):
            raise GraphError("TensorRT-LLM aborted the request.", where="LLM", found=reason)
        # A stop token is reported as such; the end token may be omitted.
        stopped_by = answer.stop_reason if isinstance(answer.stop_reason, int) else self._end_id
        if reason == "stop" and stopped_by != _NO_END and tokens[-1:] != [stopped_by]:
            tokens.append(stopped_by)
        return Generated(tokens, reason)

    def _give_up(self) -> None:
        self._output.abort()


def require_llm_api(tp: int) -> Any:
    """The package `tensorrt_llm`, on a machine with that many GPUs.

    Raises:
        CapabilityError: TensorRT-LLM is missing or of another version, or there are fewer GPUs.
    """
    library = tensorrt_llm.load(tensorrt_llm.LLM_API, tensorrt_llm.LLM_API_TEXT)
    tensorrt_llm.require_gpus(tp)
    return library


def open_llm(checkpoint: Path, architecture: str, tp: int = 1) -> tuple[Any, Library]:
    """The model of a unified checkpoint's folder, over `tp` GPUs.

    Args:
        architecture: of the checkpoint's config.json, for the error.

    Raises:
        CapabilityError: TensorRT-LLM or GPUs are missing, or it does not load the checkpoint.
    """
    library = require_llm_api(tp)
    try:
        return library.LLM(model=str(checkpoint), tensor_parallel_size=tp, skip_tokenizer_init=True), library
    except (RuntimeError, ValueError) as error:
        raise CapabilityError(
            "TensorRT-LLM does not load the checkpoint.",
            where=checkpoint,
            expected=f"a PyTorch backend with a model for {architecture}; releases up to 1.3 have none of this family",
            found=str(error).splitlines()[0] if str(error) else repr(error),
            fix="build an engine for TensorRT-LLM 1.0 to 1.2 instead: --target tensorrt-llm, r1v-export engine",
        ) from error
