"""The executor's adapter against a stand-in that takes only what the library takes (`stand_in.py`)."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from r1v_export.errors import CapabilityError, GraphError, InputError, UsageError
from r1v_export.generation import EncodedImage, Generated, Sampling
from r1v_export.reference.model import Model
from r1v_export.targets.tensorrt_llm.build.command import EngineSizes
from r1v_export.targets.tensorrt_llm.runtime.executor import ExecutorSession, open_executor
from tests.targets.tensorrt_llm import stand_in
from tests.tiny_models import random_model, tiny_spec

IMAGE, HIDDEN, VOCAB = 7, 64, 99
SIZES = EngineSizes(max_batch_size=2, max_input_len=16, max_seq_len=24, max_num_tokens=64, max_multimodal_len=12)
GREEDY = Sampling(max_new_tokens=6)


def config(dtype: str = "float32", ranks: int = 1, cache: str | None = None) -> Any:
    quantization = SimpleNamespace(quant_algo=None, kv_cache_quant_algo=cache)
    mapping = SimpleNamespace(world_size=ranks)
    return SimpleNamespace(
        dtype=dtype, vocab_size=VOCAB, hidden_size=HIDDEN, quantization=quantization, mapping=mapping
    )


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(tiny_spec(image_token_id=IMAGE)).eval().requires_grad_(False)


@pytest.fixture
def executor(model: Model) -> stand_in.Executor:
    return stand_in.Executor(model)


@pytest.fixture
def session(executor: stand_in.Executor) -> ExecutorSession:
    return ExecutorSession(executor, stand_in.bindings(executor.model), config(), SIZES, IMAGE)


def image(seed: int = 0, rows: int = 3) -> EncodedImage:
    random = np.random.default_rng(seed)
    return EncodedImage.of(random.random((1, 3, 4, 4)), random.standard_normal((rows, HIDDEN)).astype(np.float32))


def ask(
    session: ExecutorSession, *images: EncodedImage, sampling: Sampling = GREEDY, stops: frozenset[int] = frozenset()
) -> list[Generated]:
    ids = [1, 2] + [IMAGE] * sum(len(p.embeds) for p in images) + [3]
    generation = session.generate(ids, images, sampling, stops, threading.Event())
    return [step for step in generation if step.token_ids or step.finish_reason]


def tokens_of(steps: list[Generated]) -> list[int]:
    return [token for step in steps for token in step.token_ids]


def test_tokens_stream_until_there_are_as_many_as_may_be(session, executor):
    steps = ask(session, image())

    assert [len(step.token_ids) for step in steps] == [1] * 6
    assert [step.finish_reason for step in steps] == [None] * 5 + ["length"]
    assert executor.working == {}
    assert executor.cancelled == []


@pytest.mark.parametrize("others", [(), (0,), (98,)], ids=["alone", "a lower one", "a higher one"])
def test_the_token_that_stops_is_the_last_whether_the_library_tells_it_or_not(session, others):
    tokens = tokens_of(ask(session, image()))
    place = next(index for index in range(1, len(tokens)) if tokens[index] not in (*tokens[:index], *others))

    steps = ask(session, image(), stops=frozenset({tokens[place], *others}))

    assert tokens_of(steps) == tokens[: place + 1]
    assert steps[-1].finish_reason == "stop"


def test_every_stop_token_is_reported(session, executor):
    ask(session, stops=frozenset({9, 11, 90}))

    (request,) = executor.requests
    assert (request.end_id, request.pad_id, request.stop_words) == (9, 9, [[11], [90]])


def test_without_stop_tokens_only_length_ends_an_answer(session, executor):
    assert ask(session)[-1].finish_reason == "length"
    assert (executor.requests[0].end_id, executor.requests[0].stop_words) == (None, None)


def test_text_alone_brings_no_table(session, executor):
    ask(session)

    assert executor.requests[0].prompt_tuning_config is None


def test_the_table_is_of_the_engine_s_dtype(model):
    executor = stand_in.Executor(model, torch.bfloat16)
    session = ExecutorSession(executor, stand_in.bindings(model), config("bfloat16"), SIZES, IMAGE)

    assert len(tokens_of(ask(session, image()))) == 6


def test_temperature_0_takes_the_most_likely_token(session, executor):
    ask(session, sampling=Sampling(2, temperature=0, top_p=0.9, top_k=5))

    assert executor.requests[0].sampling_config == stand_in.SamplingConfig(top_k=1)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(2, 0.6, 0.95, 40, 1.05, 3), {"top_k": 40, "top_p": 0.95, "repetition_penalty": 1.05, "seed": 3}),
        (Sampling(2, 0.6), {"top_k": 0, "top_p": 1.0, "repetition_penalty": None, "seed": 0}),
    ],
    ids=["everything", "temperature alone"],
)
def test_drawing_is_passed_on_and_never_turns_greedy(session, executor, sampling, expected):
    ask(session, sampling=sampling)

    passed = executor.requests[0].sampling_config
    assert passed == stand_in.SamplingConfig(temperature=0.6, **expected)
    assert not passed.greedy


def test_no_seed_is_another_seed_every_time(session, executor):
    for _ in range(2):
        ask(session, sampling=Sampling(2, 0.6, seed=None))

    first, second = (request.sampling_config.seed for request in executor.requests)
    assert first != second


def test_more_candidates_than_the_library_draws_from_are_refused(session, executor):
    with pytest.raises(UsageError, match="at most 1024"):
        ask(session, sampling=Sampling(2, 0.6, top_k=2000))
    assert executor.requests == []


def test_nothing_comes_while_nothing_is_made(session):
    generation = session.generate([1, 2], [], GREEDY, frozenset(), threading.Event())

    assert next(generation) == Generated([])


def test_cancelling_gives_the_request_up(session, executor):
    cancel = threading.Event()
    generation = session.generate([1, 2], [], GREEDY, frozenset(), cancel)
    assert [len(next(generation).token_ids) for _ in range(3)] == [0, 1, 1]

    cancel.set()

    assert list(generation) == [Generated([], "cancelled")]
    assert (executor.cancelled, executor.working) == ([1], {})


def test_closing_frees_the_request_once(session, executor):
    generation = session.generate([1, 2], [], GREEDY, frozenset(), threading.Event())

    generation.close()
    generation.close()

    assert (executor.cancelled, executor.working) == ([1], {})
    assert list(generation) == []


def test_a_finished_request_is_not_given_up(session, executor):
    generation = session.generate([1, 2], [], GREEDY, frozenset(), threading.Event())
    list(generation)

    generation.close()

    assert executor.cancelled == []


def test_what_the_engine_says_of_a_failure_is_reported(session, executor):
    executor.fail = "out of blocks"

    with pytest.raises(GraphError, match="out of blocks"):
        ask(session)


def test_what_the_library_refuses_is_reported(session, executor):
    executor.refuse = "prompt embedding table of another size"

    with pytest.raises(GraphError, match="another size"):
        ask(session)


@pytest.mark.parametrize(
    ("ids", "rows", "new", "what"),
    [
        (17, 0, 1, "prompt tokens"),
        (10, 0, 15, "tokens of prompt and answer"),
        (9, 7, 1, "image tokens"),
    ],
)
def test_what_the_engine_was_not_built_for_is_refused_before_it_is_asked(session, executor, ids, rows, new, what):
    images = [image(rows=rows)] if rows else []

    with pytest.raises(InputError, match=f"more {what} than"):
        session.generate([1] * (ids - rows) + [IMAGE] * rows, images, Sampling(new), frozenset(), threading.Event())
    assert executor.requests == []


def test_a_prompt_longer_than_a_step_is_refused(executor):
    sizes = replace(SIZES, max_num_tokens=8)
    session = ExecutorSession(executor, stand_in.bindings(executor.model), config(), sizes, IMAGE)

    with pytest.raises(InputError, match=r"more prompt tokens than[\s\S]*at most 8"):
        session.generate([1] * 9, [], GREEDY, frozenset(), threading.Event())


class TestOpening:
    @pytest.fixture
    def engine(self, tmp_path):
        (tmp_path / "rank0.engine").write_bytes(b"plan")
        return tmp_path

    def test_one_gpu_is_opened_in_this_process(self, monkeypatch, model, engine):
        library = stand_in.install(monkeypatch, model)

        executor, bindings = open_executor(engine, config("bfloat16"))

        assert library.executor.opened == [(str(engine), executor)]
        assert executor.config.parallel_config is None
        assert bindings is library.executor

    @pytest.mark.parametrize(
        ("dtype", "cache", "reuse"), [("bfloat16", None, True), ("bfloat16", "INT8", False), ("float32", None, False)]
    )
    def test_blocks_are_reused_where_the_engine_s_attention_can(self, monkeypatch, model, engine, dtype, cache, reuse):
        stand_in.install(monkeypatch, model)

        executor, _ = open_executor(engine, config(dtype, cache=cache))

        assert executor.config.kv_cache_config.enable_block_reuse == reuse

    def test_several_gpus_get_the_library_s_own_workers(self, monkeypatch, model, engine):
        stand_in.install(monkeypatch, model)

        executor, _ = open_executor(engine, config(ranks=2))

        parallel = executor.config.parallel_config
        assert (parallel.communication_type, parallel.communication_mode) == ("MPI", "ORCHESTRATOR")
        assert parallel.orchestrator_config.is_orchestrator
        assert parallel.orchestrator_config.worker_executable_path.endswith("tensorrt_llm/bin/executorWorker")

    def test_more_ranks_than_gpus_are_refused(self, monkeypatch, model, engine):
        stand_in.install(monkeypatch, model)

        with pytest.raises(CapabilityError, match=r"16 CUDA GPUs[\s\S]*found:    8"):
            open_executor(engine, config(ranks=16))

    @pytest.mark.parametrize("version", ["0.21.0", "1.3.0rc20", "2.0.0", "unknown"])
    def test_versions_without_engines_are_refused(self, monkeypatch, model, engine, version):
        stand_in.install(monkeypatch, model, version)

        with pytest.raises(CapabilityError, match=r"1\.0, 1\.1 or 1\.2[\s\S]*found: +" + version):
            open_executor(engine, config())

    def test_an_engine_that_the_library_does_not_open_is_reported(self, monkeypatch, model, engine):
        library = stand_in.install(monkeypatch, model)

        def refuse(*_: Any) -> None:
            raise RuntimeError("engine of version 1.1.0\nmore")

        library.executor.Executor = refuse

        with pytest.raises(CapabilityError, match=r"found: +engine of version 1\.1\.0\n"):
            open_executor(engine, config())

    def test_without_the_library_the_capability_is_missing(self, engine):
        with pytest.raises(CapabilityError, match="TensorRT-LLM is not installed"):
            open_executor(engine, config())

    def test_a_library_that_does_not_load_is_reported(self, monkeypatch, engine):
        def fail(name: str) -> None:
            raise OSError(f"{name}: libcuda.so.1: cannot open shared object file")

        monkeypatch.setattr("r1v_export.targets.tensorrt_llm.library.importlib.import_module", fail)

        with pytest.raises(CapabilityError, match=r"libcuda\.so\.1"):
            open_executor(engine, config())
