"""r1v.h through ctypes: the layout of every struct, so that a change of the ABI is noticed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_double,
    c_int32,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
    sizeof,
)
from pathlib import Path
from typing import Any

from PIL.Image import Image as PillowImage

OK, USAGE, BUNDLE, INPUT, GRAPH, CAPABILITY = range(6)
QUEUE_FULL = 9


class EngineOptions(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("target", c_char_p),
        ("device", c_char_p),
        ("onnxruntime_library", c_char_p),
        ("gpu", c_int32),
        ("threads", c_int32),
        ("verify", c_int32),
        ("max_rows", c_int64),
        ("max_queued", c_int64),
        ("cache_bytes", c_int64),
        ("image_cache_bytes", c_int64),
        ("prefill_chunk", c_int64),
        ("tensorrt_library", c_char_p),
        ("engine", c_char_p),
        ("tensorrt_llm_library", c_char_p),
        ("keep_prefixes", c_int32),
        ("warn", c_void_p),
        ("warn_context", c_void_p),
        ("vision_target", c_char_p),
    )


WARN = CFUNCTYPE(None, c_void_p, c_char_p)
"""What `EngineOptions.warn` points to: called with `warn_context` and a message."""


class Stats(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("queued", c_int64),
        ("running", c_int64),
        ("rows", c_int64),
        ("cache_bytes", c_int64),
        ("refused", c_int64),
        ("finished", c_int64),
        ("failed", c_int64),
        ("prompt_tokens", c_int64),
        ("reused_tokens", c_int64),
        ("generated_tokens", c_int64),
        ("decode_steps", c_int64),
        ("decoded_rows", c_int64),
        ("image_hits", c_int64),
        ("image_misses", c_int64),
        ("prefix_hits", c_int64),
        ("prefix_misses", c_int64),
        ("preempted", c_int64),
        ("vision_runs", c_int64),
        ("vision_tiles", c_int64),
        ("kept_rows", c_int64),
        ("image_cache_bytes", c_int64),
    )


class Image(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("path", c_char_p),
        ("data", c_char_p),
        ("size", c_size_t),
        ("width", c_int32),
        ("height", c_int32),
    )


class Turn(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("role", c_char_p),
        ("text", c_char_p),
        ("images", POINTER(Image)),
        ("image_count", c_size_t),
    )


class Sampling(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("max_new_tokens", c_int64),
        ("temperature", c_double),
        ("top_p", c_double),
        ("top_k", c_int64),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
        ("presence_penalty", c_double),
        ("frequency_penalty", c_double),
        ("seed", c_uint64),
        ("random_seed", c_int32),
        ("stop", POINTER(c_char_p)),
        ("stop_count", c_size_t),
        ("stop_in_reasoning", c_int32),
        ("ignore_eos", c_int32),
        ("bias_ids", POINTER(c_int64)),
        ("biases", POINTER(c_double)),
        ("bias_count", c_size_t),
        ("max_reasoning_tokens", c_int64),
        ("logprobs", c_int64),
    )


class RequestOptions(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("turns", POINTER(Turn)),
        ("turn_count", c_size_t),
        ("sampling", POINTER(Sampling)),
        ("think", c_int32),
        ("grounding", c_int32),
        ("raw", c_int32),
        ("client", c_char_p),
        ("timeout_ms", c_int64),
    )


class Event(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("token_id", c_int64),
        ("reasoning", c_char_p),
        ("reasoning_size", c_size_t),
        ("text", c_char_p),
        ("text_size", c_size_t),
        ("finished", c_int32),
        ("logprob", POINTER(c_double)),
        ("top_ids", POINTER(c_int64)),
        ("top_logprobs", POINTER(c_double)),
        ("top_count", c_size_t),
    )


class Answer(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("reasoning", c_char_p),
        ("text", c_char_p),
        ("reasoning_complete", c_int32),
        ("finish_reason", c_int32),
        ("token_ids", POINTER(c_int64)),
        ("token_count", c_size_t),
        ("reasoning_tokens", c_int64),
        ("prompt_tokens", c_int64),
        ("preprocess_ms", c_double),
        ("vision_ms", c_double),
        ("projector_ms", c_double),
        ("embed_ms", c_double),
        ("prefill_ms", c_double),
        ("decode_ms", c_double),
        ("queue_ms", c_double),
        ("decode_steps", c_int64),
        ("reused_tokens", c_int64),
        ("logprobs", POINTER(c_double)),
        ("top_ids", POINTER(c_int64)),
        ("top_logprobs", POINTER(c_double)),
        ("top_count", c_size_t),
    )


Logprobs = tuple[float, list[tuple[int, float]]]


def logprobs_of(chosen: Any, struct: Any, count: int) -> list[Logprobs]:
    """Log probabilities of `count` tokens, as `TokenLogprobs` of Python."""
    size = struct.top_count
    ids, values = (pointer[: count * size] if size else [] for pointer in (struct.top_ids, struct.top_logprobs))
    tops = list(zip(ids, values, strict=True))
    return [(chosen[i], tops[i * size : (i + 1) * size]) for i in range(count)]


class StatusError(Exception):
    """A call of the library that failed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def load(path: Path) -> ctypes.CDLL:
    """The library, with the types of its functions."""
    library = ctypes.CDLL(str(path))
    for name in ("version", "error_message", "status_name", "engine_description", "engine_note"):
        getattr(library, f"r1v_{name}").restype = c_char_p
    library.r1v_engine_description.argtypes = library.r1v_engine_note.argtypes = [c_void_p]
    library.r1v_engine_max_positions.argtypes = [c_void_p]
    library.r1v_engine_max_positions.restype = c_int64
    for name in ("engine_options", "image", "turn", "request_options", "event", "answer", "stats"):
        getattr(library, f"r1v_{name}_init").argtypes = [c_void_p, c_size_t]
    for name in ("sampling_init", "sampling_init_greedy"):
        getattr(library, f"r1v_{name}").argtypes = [c_void_p, c_void_p, c_size_t]
    library.r1v_engine_open.argtypes = [c_char_p, c_void_p, c_void_p]
    library.r1v_verify.argtypes = [c_char_p, c_void_p, c_void_p]
    library.r1v_request_start.argtypes = [c_void_p, c_void_p, c_void_p]
    for name in ("request_next", "request_answer", "engine_stats"):
        getattr(library, f"r1v_{name}").argtypes = [c_void_p, c_void_p]
    for name in ("engine_free", "request_free", "request_cancel"):
        getattr(library, f"r1v_{name}").argtypes = [c_void_p]
    return library


class Engine:
    """An engine of the library."""

    def __init__(self, library: ctypes.CDLL, bundle: Path, **options: Any) -> None:
        self.library, self.handle = library, c_void_p()
        given = self.made(EngineOptions, "engine_options", **options)
        self.check(library.r1v_engine_open(str(bundle).encode(), byref(given), byref(self.handle)))

    def made(self, kind: type[Structure], name: str, **fields: Any) -> Any:
        """A struct with its defaults, and some fields."""
        struct = kind()
        getattr(self.library, f"r1v_{name}_init")(byref(struct), sizeof(struct))
        for field, value in fields.items():
            setattr(struct, field, value)
        return struct

    def check(self, status: int) -> None:
        """Raise the error of a call."""
        if status != OK:
            raise StatusError(status, self.library.r1v_error_message().decode())

    def greedy(self, **fields: Any) -> Sampling:
        """Greedy sampling."""
        sampling = Sampling()
        self.check(self.library.r1v_sampling_init_greedy(self.handle, byref(sampling), sizeof(sampling)))
        for field, value in fields.items():
            setattr(sampling, field, value)
        return sampling

    def start(self, text: str, *images: Image, role: str = "user", **options: Any) -> c_void_p:
        """Begin to answer a question."""
        turn = self.made(Turn, "turn", role=role.encode(), text=text.encode())
        turn.images, turn.image_count = (Image * len(images))(*images), len(images)
        sampling = options.pop("sampling", None)
        request = self.made(RequestOptions, "request_options", turn_count=1, **options)
        request.turns = (Turn * 1)(turn)
        if sampling is not None:
            request.sampling = ctypes.pointer(sampling)
        handle = c_void_p()
        self.check(self.library.r1v_request_start(self.handle, byref(request), byref(handle)))
        return handle

    def events(self, request: c_void_p) -> Iterator[tuple[int, str, str]]:
        """Token, reasoning and text of each event."""
        return (event[:3] for event in self.all_events(request))

    def all_events(self, request: c_void_p) -> Iterator[tuple[int, str, str, Logprobs | None]]:
        """The same, and the token's log probabilities."""
        finished = False
        while not finished:
            event = self.made(Event, "event")
            self.check(self.library.r1v_request_next(request, byref(event)))
            finished = bool(event.finished)
            logprobs = logprobs_of(event.logprob, event, 1)[0] if event.logprob else None
            yield event.token_id, event.reasoning.decode(), event.text.decode(), logprobs

    def answer(self, request: c_void_p) -> Answer:
        """The whole answer, once its events are over."""
        answer = self.made(Answer, "answer")
        self.check(self.library.r1v_request_answer(request, byref(answer)))
        return answer

    @property
    def words(self) -> tuple[str, str]:
        """What runs the graphs, and what people should know of images."""
        library = self.library
        return library.r1v_engine_description(self.handle).decode(), library.r1v_engine_note(self.handle).decode()

    def stats(self) -> Stats:
        """What the engine does, and has counted."""
        stats = self.made(Stats, "stats")
        self.check(self.library.r1v_engine_stats(self.handle, byref(stats)))
        return stats

    def close(self) -> None:
        """Free the engine."""
        self.library.r1v_engine_free(self.handle)


def file_image(engine: Engine, path: Path) -> Image:
    """An image in a file."""
    return engine.made(Image, "image", path=str(path).encode())


def pixels(engine: Engine, image: PillowImage) -> Image:
    """An image of Pillow, as the pixels that it has."""
    rgb = image.convert("RGB")
    sizes = {"size": 3 * rgb.width * rgb.height, "width": rgb.width, "height": rgb.height}
    return engine.made(Image, "image", data=rgb.tobytes(), **sizes)


def ask(engine: Engine, text: str, *images: Image, **options: Any) -> tuple[str, str, list[int], int]:
    """Reasoning, text, tokens and the reason of the end of an answer, which its events have to add up to."""
    request = engine.start(text, *images, **options)
    try:
        events = list(engine.events(request))
        answer = engine.answer(request)
        tokens = answer.token_ids[: answer.token_count]
        assert [token for token, _, _ in events if token >= 0] == tokens
        assert "".join(reasoning for _, reasoning, _ in events) == answer.reasoning.decode()
        assert "".join(text for _, _, text in events) == answer.text.decode()
        return answer.reasoning.decode(), answer.text.decode(), tokens, answer.finish_reason
    finally:
        engine.library.r1v_request_free(request)
