"""The runtime adapters, against stand-ins of TensorRT-LLM that accept only what it accepts: its argument names, int ids
in range, an extra id for each token, a contiguous table in the model's dtype."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from r1v_export.builders.tensorrt_llm.command import EngineSizes
from r1v_export.builders.tensorrt_llm.executor import Choice, ExecutorSession, open_executor
from r1v_export.builders.tensorrt_llm.llm_api import LlmApiSession, open_llm
from r1v_export.builders.tensorrt_llm.prompt_table import Picture, TablePrompt
from r1v_export.builders.tensorrt_llm.vision import TileParallelVision, tile_shares
from r1v_export.errors import CapabilityError, GraphError, InputError

VOCAB, HIDDEN, IMAGE = 100, 8, 42
SIZES = EngineSizes(max_batch_size=2, max_input_len=16, max_seq_len=24, max_num_tokens=64, max_multimodal_len=12)
CONFIG: Any = SimpleNamespace(dtype="bfloat16", vocab_size=VOCAB, hidden_size=HIDDEN)
STOP = frozenset({7, 9})


@dataclass
class Request:
    """The executor's, with the checks that its bindings and its engine make."""

    input_token_ids: list[int]
    max_tokens: int
    streaming: bool
    sampling_config: Any
    output_config: Any
    end_id: int | None
    pad_id: int | None
    stop_words: list[list[int]] | None
    prompt_tuning_config: Any

    def __post_init__(self) -> None:
        table = self.prompt_tuning_config
        rows = 0 if table is None else table.embedding_table.shape[0]
        assert all(type(token) is int and 0 <= token < VOCAB + rows for token in self.input_token_ids)
        if table is not None:
            assert len(table.input_token_extra_ids) == len(self.input_token_ids)
            assert max(self.input_token_ids) == VOCAB + rows - 1


@dataclass
class PromptTuningConfig:
    embedding_table: torch.Tensor
    input_token_extra_ids: list[int]

    def __post_init__(self) -> None:
        table = self.embedding_table
        assert table.dtype == torch.bfloat16
        assert table.ndim == 2
        assert table.shape[1] == HIDDEN
        assert table.is_contiguous()
        assert all(type(extra) is int and 0 <= extra < 2**64 for extra in self.input_token_extra_ids)


@dataclass
class SamplingConfig:
    beam_width: int
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None


@dataclass
class OutputConfig:
    exclude_input_from_output: bool


LIBRARY: Any = SimpleNamespace(
    Request=Request, PromptTuningConfig=PromptTuningConfig, SamplingConfig=SamplingConfig, OutputConfig=OutputConfig
)


@dataclass
class Executor:
    """Answers with the given tokens, one response each."""

    tokens: list[int]
    reason: str = "FinishReason.END_ID"
    error: str | None = None
    requests: list[Request] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    given: int = 0

    def enqueue_request(self, request: Request) -> int:
        assert isinstance(request, Request)
        self.requests.append(request)
        return 5

    def await_responses(self, request_id: int, timeout: timedelta) -> list[Any]:
        assert request_id == 5
        assert isinstance(timeout, timedelta)
        if self.error:
            return [SimpleNamespace(has_error=lambda: True, error_msg=self.error)]
        token, self.given = self.tokens[self.given], self.given + 1
        final = self.given == len(self.tokens)
        result = SimpleNamespace(output_token_ids=[[token]], is_final=final, finish_reasons=[self.reason])
        return [SimpleNamespace(has_error=lambda: False, result=result)]

    def cancel_request(self, request_id: int) -> None:
        self.cancelled.append(request_id)


def picture(value: float, rows: int = 3) -> Picture:
    pixels = np.full((1, 3, 4, 4), value, dtype=np.float32)
    return Picture.of(pixels, np.full((1, rows, HIDDEN), value, dtype=np.float32))


def prompt(*pictures: Picture, text: int = 2) -> TablePrompt:
    ids = [1] * text + [IMAGE] * sum(len(p.embeds) for p in pictures) + [2]
    return TablePrompt.of(ids, pictures, IMAGE, VOCAB, HIDDEN)


def session(executor: Executor) -> ExecutorSession:
    return ExecutorSession(executor, LIBRARY, CONFIG, SIZES)


class TestTable:
    def test_image_tokens_become_rows_beyond_the_vocabulary(self):
        made = prompt(picture(0.5, rows=2), picture(0.25, rows=1))

        assert made.token_ids == [1, 1, 100, 101, 102, 2]
        assert made.table.tolist() == [[0.5] * HIDDEN, [0.5] * HIDDEN, [0.25] * HIDDEN]

    def test_extra_ids_tell_pictures_apart_and_leave_text_alone(self):
        made = prompt(picture(0.5, rows=2), picture(0.25, rows=1))

        text, first, second = made.extra_ids[0], made.extra_ids[2], made.extra_ids[4]
        assert made.extra_ids == [text, text, first, first, second, text]
        assert text == 0
        assert len({text, first, second}) == 3

    def test_the_same_picture_has_the_same_extra_id_wherever_it_stands(self):
        one, two = prompt(picture(0.5), text=1), prompt(picture(0.25), picture(0.5), text=4)

        assert one.extra_ids[1] == two.extra_ids[-2]

    def test_text_alone_has_an_empty_table(self):
        assert prompt().table.shape == (0, HIDDEN)

    def test_too_few_image_tokens_are_refused(self):
        with pytest.raises(InputError, match=r"3 image tokens[\s\S]*found:    1"):
            TablePrompt.of([1, IMAGE], [picture(0.5)], IMAGE, VOCAB, HIDDEN)

    def test_an_id_that_would_be_taken_for_a_row_is_refused(self):
        with pytest.raises(InputError, match="out of range"):
            TablePrompt.of([VOCAB], [], IMAGE, VOCAB, HIDDEN)


class TestExecutor:
    def test_tokens_stream_and_the_one_that_stops_is_left_out(self):
        executor = Executor([11, 12, 7])

        generated = list(session(executor).generate(prompt(picture(0.5)), Choice(8), STOP))

        assert [g.token_ids for g in generated] == [[11], [12], []]
        assert [g.finish_reason for g in generated] == [None, None, "stop"]
        assert executor.cancelled == []

    def test_an_answer_as_long_as_it_may_be_ends_by_length(self):
        executor = Executor([11, 12], reason="FinishReason.LENGTH")

        assert list(session(executor).generate(prompt(), Choice(2), STOP))[-1].finish_reason == "length"

    def test_every_stop_token_is_told(self):
        executor = Executor([7])
        list(session(executor).generate(prompt(), Choice(2), STOP))

        (request,) = executor.requests
        assert (request.end_id, request.stop_words) == (7, [[9]])
        assert request.streaming

    def test_temperature_0_takes_the_most_likely_token(self):
        executor = Executor([7])
        list(session(executor).generate(prompt(), Choice(2, temperature=0, top_p=0.9), STOP))

        assert executor.requests[0].sampling_config == SamplingConfig(beam_width=1, top_k=1)

    def test_sampling_is_passed_on(self):
        executor = Executor([7])
        list(session(executor).generate(prompt(), Choice(2, 0.6, 40, 0.95, 1.05, seed=3), STOP))

        assert executor.requests[0].sampling_config == SamplingConfig(1, 40, 0.95, 0.6, 1.05, 3)

    def test_text_alone_brings_no_table(self):
        executor = Executor([7])
        list(session(executor).generate(prompt(), Choice(2), STOP))

        assert executor.requests[0].prompt_tuning_config is None

    def test_cancelling_gives_the_request_up(self):
        executor, cancel = Executor([11, 12, 7]), threading.Event()
        generated = session(executor).generate(prompt(), Choice(8), STOP, cancel)

        assert next(generated).token_ids == [11]
        cancel.set()
        assert [g.finish_reason for g in generated] == ["cancelled"]
        assert executor.cancelled == [5]

    def test_a_caller_that_stops_listening_gives_the_request_up(self):
        executor = Executor([11, 12, 7])
        generated = session(executor).generate(prompt(), Choice(8), STOP)
        next(generated)
        generated.close()

        assert executor.cancelled == [5]

    def test_what_the_engine_says_is_told(self):
        with pytest.raises(GraphError, match="out of blocks"):
            list(session(Executor([], error="out of blocks")).generate(prompt(), Choice(2), STOP))

    @pytest.mark.parametrize(
        ("made", "choice", "what"),
        [
            (prompt(text=16), Choice(1), "prompt tokens"),
            (prompt(text=10), Choice(14), "tokens of prompt and answer"),
            (prompt(picture(0.5, rows=7)), Choice(1), "image tokens"),
        ],
    )
    def test_what_the_engine_was_not_built_for_is_refused_before_it_is_asked(self, made, choice, what):
        executor = Executor([7])

        with pytest.raises(InputError, match=f"more {what} than"):
            list(session(executor).generate(made, choice, STOP))
        assert executor.requests == []

    def test_without_the_library_the_capability_is_missing(self, tmp_path):
        with pytest.raises(CapabilityError, match="TensorRT-LLM is not installed"):
            open_executor(tmp_path)


class Llm:
    """Of the LLM API: the tokens so far with every step."""

    def __init__(self, tokens: list[int], reason: str = "stop") -> None:
        self.tokens, self.reason, self.asked = tokens, reason, []
        self.finished = self.aborted = False

    def generate_async(self, inputs: dict[str, Any], sampling: Any, *, streaming: bool) -> Llm:
        assert streaming
        assert set(inputs) <= {"prompt_token_ids", "multi_modal_embeddings"}
        for embeds in inputs.get("multi_modal_embeddings", {"image": []})["image"]:
            assert embeds.dtype == torch.bfloat16
            assert embeds.shape[1] == HIDDEN
        self.asked.append((inputs, sampling))
        return self

    def __iter__(self):
        for count in range(1, len(self.tokens) + 1):
            self.finished = count == len(self.tokens)
            answer = SimpleNamespace(
                token_ids=self.tokens[:count], finish_reason=self.reason if self.finished else None
            )
            yield SimpleNamespace(outputs=[answer])

    def abort(self) -> None:
        self.aborted = True


class TestLlmApi:
    LIBRARY: Any = SimpleNamespace(SamplingParams=lambda **fields: fields)

    def session(self, llm: Llm) -> LlmApiSession:
        return LlmApiSession(llm, self.LIBRARY, torch.bfloat16)

    def test_tokens_stream_once_each(self):
        llm = Llm([11, 12, 9])

        generated = list(self.session(llm).generate([1, IMAGE], [picture(0.5, 1)], Choice(8), STOP))

        assert [g.token_ids for g in generated] == [[11], [12], []]
        assert generated[-1].finish_reason == "stop"
        assert not llm.aborted

    def test_stop_tokens_and_length_are_told(self):
        llm = Llm([11], reason="length")
        generated = list(self.session(llm).generate([1], [], Choice(1), STOP))

        assert generated[-1].finish_reason == "length"
        assert llm.asked[0][1]["stop_token_ids"] == [7, 9]
        assert llm.asked[0][1]["max_tokens"] == 1

    def test_a_caller_that_stops_listening_aborts(self):
        llm = Llm([11, 12, 9])
        generated = self.session(llm).generate([1], [], Choice(8), STOP)
        next(generated)
        generated.close()

        assert llm.aborted

    def test_without_the_library_the_capability_is_missing(self, tmp_path):
        with pytest.raises(CapabilityError, match="TensorRT-LLM is not installed"):
            open_llm(tmp_path)


class TestVision:
    @pytest.mark.parametrize(("tiles", "gpus"), [(13, 1), (13, 2), (13, 4), (13, 8), (3, 8), (1, 2)])
    def test_every_tile_is_looked_at_once_and_gpus_by_turns(self, tiles, gpus):
        shares = tile_shares(tiles, gpus)
        sizes = [share.stop - share.start for share in shares]

        assert [tile for share in shares for tile in range(tiles)[share]] == list(range(tiles))
        assert len(shares) == gpus
        assert max(sizes) - min(sizes) <= 1

    @pytest.mark.parametrize("tiles", [0, 1, 5])
    def test_several_gpus_give_what_one_gives(self, tiles):
        class Double:
            def vision(self, pixel_values: np.ndarray) -> np.ndarray:
                assert pixel_values.flags.c_contiguous
                return 2 * pixel_values

            projector = vision

        pixels = np.arange(tiles * 6, dtype=np.float32).reshape(tiles, 6)

        assert np.array_equal(TileParallelVision([Double()] * 4).vision(pixels), 2 * pixels)
        assert np.array_equal(TileParallelVision([Double()] * 3).projector(pixels), 2 * pixels)
