"""`r1v`: a question with its images, or a conversation, becomes a streamed answer through the other models.

Tiles and embeddings stay within the server. Each request has a thread, which waits for its answer: as many as Triton
lets in.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import numpy as np

from r1v_export.contract import IMAGE_EMBEDS, INPUT_IDS, PIXEL_VALUES
from r1v_export.deploy.triton.models import python_backend as triton
from r1v_export.deploy.triton.tensors import (
    ENABLE_THINKING,
    FINISH_REASON,
    IMAGE,
    LLM,
    LOGPROBS,
    MESSAGES,
    PREPROCESS,
    PROMPT,
    REASONING_OUTPUT,
    SAMPLING_PARAMETERS,
    STOP,
    STREAM,
    TEXT_INPUT,
    TEXT_OUTPUT,
    THINKING,
    TILES_PER_IMAGE,
    TOKEN_IDS,
    USAGE,
    VISION,
)
from r1v_export.generation import EncodedImage
from r1v_export.runner.batching.options import MIB
from r1v_export.runner.image_encoder import ImageCache

_ANSWER = (TOKEN_IDS, REASONING_OUTPUT, TEXT_OUTPUT, LOGPROBS, FINISH_REASON, USAGE)


class TritonPythonModel:
    """Leads requests through the other models."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the parameters."""
        parameters = triton.ModelArguments(args).parameters
        self.tiles_at_once = int(parameters[triton.TILES_AT_ONCE])
        self.images = ImageCache(int(parameters[triton.IMAGE_CACHE_MIB]) * MIB)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def execute(self, requests: Sequence[Any]) -> None:
        """Answer each request on a thread of its own."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for request in requests:
            thread = threading.Thread(target=self._answer, args=(request,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def finalize(self) -> None:
        """Wait for what is being answered."""
        for thread in self._threads:
            thread.join(timeout=30)

    def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            triton.require_no_parameters(request)
            prompt = self._call(PREPROCESS, self._passed(request, TEXT_INPUT, MESSAGES, PROMPT, IMAGE, ENABLE_THINKING))
            pixels_T3SS, tiles_per_image = prompt[PIXEL_VALUES].as_numpy(), prompt[TILES_PER_IMAGE].as_numpy()
            embeds = self._image_embeds(pixels_T3SS, tiles_per_image)
            responses = self._generate(request, prompt, embeds, sender)
            if not triton.flag_input(request, STREAM, default=True):
                responses = iter([_joined(list(responses))])
            for tensors in responses:
                sender.send(triton.backend().InferenceResponse(tensors))
            sender.send(flags=triton.FINAL)
        except Exception as error:
            sender.send(triton.error_response(error, status_in_text=False), flags=triton.FINAL)

    def _passed(self, request: Any, *names: str) -> list[Any]:
        """Inputs of a request, as another model takes them."""
        found = (triton.backend().get_input_tensor_by_name(request, name) for name in names)
        return [tensor for tensor in found if tensor is not None]

    def _call(self, model: str, inputs: Sequence[Any]) -> dict[str, Any]:
        """The outputs of a model that answers once, but for those that it omits."""
        names = {PREPROCESS: (INPUT_IDS, PIXEL_VALUES, TILES_PER_IMAGE, THINKING), VISION: (IMAGE_EMBEDS,)}[model]
        request = triton.backend().InferenceRequest(
            model_name=model, requested_output_names=list(names), inputs=list(inputs)
        )
        response = request.exec()
        if response.has_error():
            raise triton.TritonModelError(response.error())
        return {tensor.name(): tensor for tensor in response.output_tensors()}

    def _image_embeds(self, pixels_T3SS: np.ndarray, tiles_per_image: np.ndarray) -> np.ndarray | None:
        """The embeddings of all tiles; None without images. Those of an image shown again may be kept."""
        if len(pixels_T3SS) == 0:
            return None
        images = np.split(pixels_T3SS, np.cumsum(tiles_per_image)[:-1])
        digests = [hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in images]
        with self._lock:
            found = [self.images.get(digest) for digest in digests]
        missing = [image for image, kept in zip(images, found, strict=True) if kept is None]
        encoded = self._encode(np.concatenate(missing)) if missing else None
        parts, start = [], 0
        for image, digest, kept in zip(images, digests, found, strict=True):
            if kept is not None:
                parts.append(kept[1].embeds)
                continue
            assert encoded is not None
            parts.append(encoded[start : start + len(image)].copy())
            start += len(image)
            with self._lock:
                self.images.put(len(image), EncodedImage(parts[-1], digest))
        return np.concatenate(parts)

    def _encode(self, pixels_T3SS: np.ndarray) -> np.ndarray:
        starts = range(0, len(pixels_T3SS), self.tiles_at_once)
        parts = [pixels_T3SS[start : start + self.tiles_at_once] for start in starts]
        encoded = [self._call(VISION, [triton.output(PIXEL_VALUES, part)])[IMAGE_EMBEDS].as_numpy() for part in parts]
        return np.concatenate(encoded)

    def _generate(
        self, request: Any, prompt: Mapping[str, Any], embeds: np.ndarray | None, sender: Any
    ) -> Iterator[list[Any]]:
        """The tensors of each response of `r1v_llm`; a client that has gone stops it."""
        request_id = uuid4().hex
        inputs = [prompt[name] for name in (INPUT_IDS, THINKING) if name in prompt]
        inputs += self._passed(request, SAMPLING_PARAMETERS)
        if embeds is not None:
            inputs += [triton.output(IMAGE_EMBEDS, embeds), prompt[TILES_PER_IMAGE]]
        stopped, failure = False, None
        # An iterator that is not read to its end blocks the backend: also after an error.
        for response in self._exec(request_id, inputs):
            if response.has_error():
                failure = failure or triton.TritonModelError(response.error())
                continue
            if not stopped and sender.is_cancelled():
                stopped = True
                for _ in self._exec(request_id, [triton.output(STOP, np.array([True]))]):
                    pass
            if not stopped and (tensors := response.output_tensors()):
                yield tensors
        if failure is not None:
            raise failure

    def _exec(self, request_id: str, inputs: Sequence[Any]) -> Iterator[Any]:
        request = triton.backend().InferenceRequest(
            request_id=request_id, model_name=LLM, requested_output_names=list(_ANSWER), inputs=list(inputs)
        )
        responses: Iterator[Any] = request.exec(decoupled=True)
        return responses


def _joined(responses: Sequence[Sequence[Any]]) -> list[Any]:
    """The tensors of one response with the whole answer."""
    parts: dict[str, list[np.ndarray]] = {}
    for tensors in responses:
        for tensor in tensors:
            parts.setdefault(tensor.name(), []).append(tensor.as_numpy())
    whole: dict[str, np.ndarray | str | int] = {TOKEN_IDS: np.concatenate(parts[TOKEN_IDS])}
    for name in (REASONING_OUTPUT, TEXT_OUTPUT):
        whole[name] = b"".join(bytes(text[0]) for text in parts[name]).decode()
    if LOGPROBS in parts:
        tokens = [token for text in parts[LOGPROBS] for token in json.loads(bytes(text[0]))["tokens"]]
        whole[LOGPROBS] = json.dumps({"tokens": tokens}, ensure_ascii=False)
    for name in (FINISH_REASON, USAGE):
        whole[name] = bytes(parts[name][-1][0]).decode()
    return [triton.output(name, value) for name, value in whole.items()]
