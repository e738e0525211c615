"""The LLM API's adapter against a stand-in that takes only what the library takes (`stand_in.py`)."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from r1v_export.errors import CapabilityError, GraphError, UsageError
from r1v_export.generation import EncodedImage, Generated, Sampling
from r1v_export.reference.model import Model
from r1v_export.targets.tensorrt_llm.runtime.llm_api import LlmApiSession, open_llm
from tests.targets.tensorrt_llm import stand_in
from tests.tiny_models import random_model, tiny_spec

IMAGE, HIDDEN = 7, 64
GREEDY = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(tiny_spec(image_token_id=IMAGE)).eval().requires_grad_(False)


@pytest.fixture
def llm(model: Model) -> stand_in.Llm:
    return stand_in.Llm(model)


@pytest.fixture
def session(llm: stand_in.Llm) -> LlmApiSession:
    return LlmApiSession(llm, stand_in, torch.float32, 256)


def image(rows: int = 3) -> EncodedImage:
    random = np.random.default_rng(0)
    return EncodedImage.of(random.random((1, 3, 4, 4)), random.standard_normal((rows, HIDDEN)).astype(np.float32))


def ask(
    session: LlmApiSession, *images: EncodedImage, sampling: Sampling = GREEDY, stops=frozenset()
) -> list[Generated]:
    ids = [1, 2] + [IMAGE] * sum(len(p.embeds) for p in images) + [3]
    return list(session.generate(ids, images, sampling, stops, threading.Event()))


def tokens_of(steps: list[Generated]) -> list[int]:
    return [token for step in steps for token in step.token_ids]


def test_tokens_stream_once_each(session):
    steps = ask(session, image())

    assert [len(step.token_ids) for step in steps] == [1] * 6
    assert steps[-1].finish_reason == "length"


@pytest.mark.parametrize("others", [(), (0,), (98,)], ids=["alone", "a lower one", "a higher one"])
def test_the_token_that_stops_is_the_last_although_the_library_omits_it(session, others):
    tokens = tokens_of(ask(session, image()))
    place = next(index for index in range(1, len(tokens)) if tokens[index] not in (*tokens[:index], *others))

    steps = ask(session, image(), stops=frozenset({tokens[place], *others}))

    assert tokens_of(steps) == tokens[: place + 1]
    assert steps[-1].finish_reason == "stop"


def test_stop_tokens_and_length_are_reported(session, llm):
    ask(session, stops=frozenset({9, 11, 90}), sampling=Sampling(1))

    (_, params) = llm.asked[0]
    assert (params.end_id, params.pad_id, params.stop_token_ids, params.max_tokens) == (9, 9, [11, 90], 1)


def test_without_stop_tokens_only_length_ends_an_answer(session, llm):
    assert ask(session)[-1].finish_reason == "length"
    assert (llm.asked[0][1].end_id, llm.asked[0][1].stop_token_ids) == (-1, None)


def test_embeddings_are_those_of_each_image_in_the_model_s_dtype(model):
    llm = stand_in.Llm(model, dtype=torch.bfloat16)

    ask(LlmApiSession(llm, stand_in, torch.bfloat16, 256), image(), image(rows=2))

    embeds = llm.asked[0][0]["multi_modal_embeddings"]["image"]
    assert [tuple(each.shape) for each in embeds] == [(3, HIDDEN), (2, HIDDEN)]


def test_a_model_that_would_not_see_the_images_is_not_asked_about_them(model):
    llm = stand_in.Llm(model, takes_embeddings=False)
    session = LlmApiSession(llm, stand_in, torch.float32, 256)

    with pytest.raises(CapabilityError, match="would ignore the images"):
        ask(session, image())
    assert llm.asked == []
    assert len(tokens_of(ask(session))) == 6


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(2, 0, 0.9, 5), {"top_k": 1, "top_p": None, "temperature": None}),
        (Sampling(2, 0.6, 0.9, 5, seed=3), {"top_k": 5, "top_p": 0.9, "temperature": 0.6, "seed": 3}),
    ],
    ids=["greedy", "drawn"],
)
def test_how_tokens_are_chosen_is_passed_on(session, llm, sampling, expected):
    ask(session, sampling=sampling)

    passed = llm.asked[0][1]
    assert {name: getattr(passed, name) for name in expected} == expected


def test_a_repetition_penalty_is_refused_and_not_ignored(session, llm):
    with pytest.raises(UsageError, match="does not support this sampling setting"):
        ask(session, sampling=Sampling(2, repetition_penalty=1.1))
    assert llm.asked == []


def test_cancelling_aborts(session, llm):
    cancel = threading.Event()
    generation = session.generate([1, 2], [], GREEDY, frozenset(), cancel)
    next(generation)

    cancel.set()

    assert list(generation) == [Generated([], "cancelled")]
    assert llm.outputs[0].aborted


def test_closing_aborts_what_is_not_finished(session, llm):
    session.generate([1, 2], [], GREEDY, frozenset(), threading.Event()).close()
    finished = session.generate([1, 2], [], GREEDY, frozenset(), threading.Event())
    list(finished)
    finished.close()

    assert [output.aborted for output in llm.outputs] == [True, False]


@pytest.mark.parametrize("error", [RuntimeError("a worker died"), ValueError("more than max_num_tokens")])
def test_what_the_library_refuses_is_reported(session, llm, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(llm, "generate_async", fail)

    with pytest.raises(GraphError, match=str(error)):
        ask(session)


class TestOpening:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        return tmp_path

    def test_the_checkpoint_is_spread_over_its_gpus(self, monkeypatch, model, checkpoint):
        library = stand_in.install(monkeypatch, model, "1.3.0")

        open_llm(checkpoint, "SkyworkChatModel", tp=2)

        assert library.loaded == [(str(checkpoint), 2)]

    def test_a_backend_without_a_model_of_this_family_is_reported_with_what_to_do(self, monkeypatch, model, checkpoint):
        library = stand_in.install(monkeypatch, model)

        def refuse(**_: object) -> None:
            raise ValueError("Unknown architecture for AutoModelForCausalLM: SkyworkChatModel")

        library.LLM = refuse

        with pytest.raises(CapabilityError, match=r"a model for SkyworkChatModel[\s\S]*--target tensorrt-llm"):
            open_llm(checkpoint, "SkyworkChatModel")

    def test_an_older_library_is_refused(self, monkeypatch, model, checkpoint):
        stand_in.install(monkeypatch, model, "1.1.0")

        with pytest.raises(CapabilityError, match=r"1\.2 or later[\s\S]*found: +1\.1\.0"):
            open_llm(checkpoint, "SkyworkChatModel")

    def test_without_the_library_the_capability_is_missing(self, checkpoint):
        with pytest.raises(CapabilityError, match="TensorRT-LLM is not installed"):
            open_llm(checkpoint, "SkyworkChatModel")
