"""The C API r1v.h, through ctypes, from C and from an installed package."""

from __future__ import annotations

import ctypes
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_int64, c_void_p, sizeof

import numpy as np
import pytest
from PIL import Image as PillowImage

from r1v_export.generation import Sampling
from r1v_export.nano.dataset import samples
from r1v_export.runner.base import Request
from r1v_export.runner.open_runner import open_runner
from r1v_export.version import VERSION
from tests.engines import c_api, programs
from tests.engines.c_api import ask, file_image, pixels
from tests.engines.conftest import ONNXRUNTIME

COUNT = programs.REPOSITORY / "examples/images/06-count.png"
HEADER = programs.REPOSITORY / "engines/include/r1v/r1v.h"
STRUCTS = {
    "r1v_engine_options": c_api.EngineOptions,
    "r1v_image": c_api.Image,
    "r1v_turn": c_api.Turn,
    "r1v_sampling": c_api.Sampling,
    "r1v_request_options": c_api.RequestOptions,
    "r1v_event": c_api.Event,
    "r1v_answer": c_api.Answer,
    "r1v_stats": c_api.Stats,
}


@pytest.fixture(scope="module")
def library(engines):
    return c_api.load(engines / "engines/api/libr1v.so")


@pytest.fixture(scope="module")
def engine(library, nano_bundle):
    opened = c_api.Engine(library, nano_bundle, onnxruntime_library=str(ONNXRUNTIME).encode())
    yield opened
    opened.close()


def test_structs_lie_in_memory_as_a_c_compiler_has_them(engines, tmp_path):
    """An engine that was compiled with an older header must find every field where it was: change no line of c_api.py,
    but for fields that are added at the end of a struct."""
    prints = "".join(
        f'printf("{name} %zu", sizeof({name}));'
        + "".join(f'printf(" %zu", offsetof({name}, {field[0]}));' for field in struct._fields_)
        + 'printf("\\n");'
        for name, struct in STRUCTS.items()
    )
    source = tmp_path / "layout.c"
    source.write_text(f'#include <stdio.h>\n#include "r1v/r1v.h"\nint main(void) {{ {prints} return 0; }}\n')
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", HEADER.parents[1]]
    subprocess.run(["cc", *flags, source, "-o", tmp_path / "layout"], check=True)
    found = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout.splitlines()
    expected = [
        " ".join(map(str, (name, sizeof(struct), *(getattr(struct, field[0]).offset for field in struct._fields_))))
        for name, struct in STRUCTS.items()
    ]
    assert found == expected


def test_the_library_shows_what_the_header_declares_and_nothing_else(engines):
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", engines / "engines/api/libr1v.so"], check=True, capture_output=True, text=True
    ).stdout
    declared = set(re.findall(r"^R1V_API [^;]*?(r1v_\w+)\(", HEADER.read_text(), re.MULTILINE))
    assert {line.split()[-1] for line in listed.splitlines()} == declared
    assert len(declared) > 20


def test_the_version_is_the_packages(library):
    assert library.r1v_version().decode() == VERSION


def test_a_question_is_answered_as_python_does(engine, nano_bundle):
    expected = open_runner(nano_bundle, vision_target="onnxruntime").ask("How many objects do you see?", COUNT)
    reasoning, text, tokens, reason = ask(engine, "How many objects do you see?", file_image(engine, COUNT))
    assert (reasoning, text, tokens) == (expected.reasoning, expected.text, list(expected.token_ids))
    assert reason == 0


@pytest.mark.slow(90)
@pytest.mark.parametrize(
    "name", ["nano_bundle", "int4_bundle", "int8_inputs_bundle", "int8_cache_bundle", "int8_bundle"]
)
def test_tokens_of_generated_questions_are_those_of_python(library, request, name):
    bundle = request.getfixturevalue(name)
    engine = c_api.Engine(library, bundle, onnxruntime_library=str(ONNXRUNTIME).encode())
    runner = open_runner(bundle, vision_target="onnxruntime")
    for sample in samples("eval", 40):
        expected = runner.answer(Request.ask(sample.question, sample.image))
        assert ask(engine, sample.question, pixels(engine, sample.image))[2] == list(expected.token_ids)
    engine.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_reasoning_tokens": 0},
        {"max_reasoning_tokens": 9, "temperature": 0.8, "seed": 3, "top_k": 30, "logprobs": 2},
        {"logit_bias": {70: -100.0, 12: 2.5}, "logprobs": 0},
        {"ignore_eos": True, "logprobs": 20},
        {"min_p": 0.05, "temperature": 1.4, "seed": 5, "presence_penalty": 0.4, "frequency_penalty": -0.2},
        {"stop": ("top", "E."), "stop_in_reasoning": True, "repetition_penalty": 1.2},
    ],
    ids=" ".join,
)
def test_every_setting_of_python_gives_its_tokens_and_log_probabilities(engine, nano_bundle, settings):
    sampling = Sampling(max_new_tokens=60, **settings)
    question = "How many objects do you see?"
    expected = open_runner(nano_bundle, vision_target="onnxruntime").ask(question, COUNT, sampling=sampling)
    request = engine.start(question, file_image(engine, COUNT), sampling=c_sampling(engine, sampling))
    of_events = [logprobs for *_, logprobs in engine.all_events(request)]
    answer = engine.answer(request)
    assert answer.token_ids[: answer.token_count] == list(expected.token_ids)
    assert (answer.reasoning.decode(), answer.text.decode()) == (expected.reasoning, expected.text)
    assert (answer.reasoning_tokens, bool(answer.reasoning_complete)) == (
        expected.reasoning_tokens,
        expected.reasoning_complete,
    )
    assert bool(answer.logprobs) == bool(expected.logprobs)
    if sampling.logprobs is not None:
        found = c_api.logprobs_of(answer.logprobs, answer, answer.token_count)
        assert found == of_events
        assert [[id_ for id_, _ in top] for _, top in found] == [
            [id_ for id_, _ in top] for _, top in expected.logprobs
        ]
        np.testing.assert_allclose(numbers_of(found), numbers_of(expected.logprobs), atol=1e-5)
    engine.library.r1v_request_free(request)


def c_sampling(engine, sampling):
    """A sampling of Python as the library's."""
    given = {**vars(sampling), "guide": None, "stop": [text.encode() for text in sampling.stop]}
    bias = given.pop("logit_bias")
    names = {name for name, _ in c_api.Sampling._fields_} - {"stop", "random_seed"}
    fields = {name: value for name, value in given.items() if name in names and value is not None}
    assert {*given} - {*fields} <= {"stop", "guide", "logprobs", "max_reasoning_tokens"}
    lists = {
        "bias_ids": (c_int64 * len(bias))(*bias),
        "biases": (ctypes.c_double * len(bias))(*bias.values()),
        "stop": (ctypes.c_char_p * len(given["stop"]))(*given["stop"]),
    }
    return engine.greedy(**fields, **lists, bias_count=len(bias), stop_count=len(given["stop"]))


def numbers_of(logprobs):
    return [number for chosen, top in logprobs for number in (chosen, *(value for _, value in top))]


def test_an_image_is_a_file_or_its_bytes_or_its_pixels(engine):
    content = COUNT.read_bytes()
    images = [
        file_image(engine, COUNT),
        engine.made(
            c_api.Image,
            "image",
            data=ctypes.cast(ctypes.create_string_buffer(content, len(content)), ctypes.c_char_p),
            size=len(content),
        ),
        pixels(engine, PillowImage.open(COUNT)),
    ]
    answers = [ask(engine, "What do you see?", image) for image in images]
    assert answers[0] == answers[1] == answers[2]


def test_threads_that_share_an_engine_get_their_own_answers(engine):
    asked = list(samples("eval", 6))
    alone = [ask(engine, sample.question, pixels(engine, sample.image)) for sample in asked]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda each: ask(engine, each.question, pixels(engine, each.image)), asked))
    assert together == alone


def endless(engine):
    """Sampling of an answer that goes on until the model's context is full."""
    return engine.greedy(ignore_eos=1, max_new_tokens=2**40)


def test_a_cancelled_answer_ends_with_what_it_has(engine):
    request = engine.start("Describe.", file_image(engine, COUNT), sampling=endless(engine))
    events = engine.events(request)
    tokens = [next(events)[0] for _ in range(3)]
    canceller = threading.Thread(target=engine.library.r1v_request_cancel, args=(request,))
    canceller.start()
    canceller.join()
    tokens += [token for token, _, _ in events]
    answer = engine.answer(request)
    assert [*answer.token_ids[: answer.token_count], -1] == tokens
    assert answer.finish_reason == 3
    engine.library.r1v_request_free(request)


def test_an_answer_whose_time_is_over_ends_with_what_it_has(engine):
    options = {"sampling": engine.greedy(temperature=50.0, seed=1), "timeout_ms": 1}
    assert ask(engine, "Describe.", file_image(engine, COUNT), **options)[3] == 4


def test_requests_are_decoded_together_and_a_full_queue_refuses(library, nano_bundle):
    engine = c_api.Engine(library, nano_bundle, onnxruntime_library=str(ONNXRUNTIME).encode(), max_rows=2, max_queued=1)
    requests = [engine.start("Describe.", file_image(engine, COUNT), sampling=endless(engine)) for _ in range(3)]
    with pytest.raises(c_api.StatusError) as refused:
        engine.start("Describe.")
    assert refused.value.status == c_api.QUEUE_FULL
    events = [engine.events(request) for request in requests]
    first, second = ([next(each)[0] for _ in range(20)] for each in events[:2])
    assert first == second
    for request, each in zip(requests, events, strict=True):
        library.r1v_request_cancel(request)
        list(each)
        library.r1v_request_free(request)
    stats = engine.stats()
    assert (stats.finished, stats.refused, stats.running, stats.image_misses) == (3, 1, 0, 1)
    assert stats.vision_tiles >= stats.vision_runs > 0
    assert stats.image_cache_bytes > 0
    assert stats.decoded_rows > stats.decode_steps
    engine.close()


def test_requests_that_give_up_their_rows_get_the_answers_that_they_get_alone(library, nano_bundle):
    slot_bytes = open_runner(nano_bundle).engine.cache_limits().slot_bytes
    options = {"onnxruntime_library": str(ONNXRUNTIME).encode(), "max_rows": 4}
    engines = [
        c_api.Engine(library, nano_bundle, cache_bytes=slots * slot_bytes, **options) for slots in (3 * 128, 4 * 1024)
    ]
    answers = []
    for engine in engines:
        sampling = engine.greedy(temperature=50.0, max_new_tokens=280)
        requests = []
        for seed in range(6):
            sampling.seed = seed
            requests.append(engine.start("Hello", sampling=sampling, raw=1))
        answers.append([[token for token, _, _ in engine.events(request)] for request in requests])
        for request in requests:
            library.r1v_request_free(request)
    crowded, roomy = (engine.stats() for engine in engines)
    assert answers[0] == answers[1]
    assert crowded.preempted > 0
    assert (roomy.preempted, roomy.prefix_hits + roomy.prefix_misses) == (0, 6)
    assert crowded.cache_bytes <= 3 * 128 * slot_bytes
    for engine in engines:
        engine.close()


def test_a_request_that_is_not_over_may_be_freed(engine):
    request = engine.start("Describe the image.", file_image(engine, COUNT))
    next(engine.events(request))
    engine.library.r1v_request_free(request)


def test_what_an_older_caller_does_not_know_is_as_by_default(engine):
    """A caller whose header has only the first two fields of r1v_sampling."""

    class Old(ctypes.Structure):
        _fields_ = (("struct_size", ctypes.c_size_t), ("max_new_tokens", c_int64), ("behind", c_int64))

    old = Old(behind=77)
    engine.check(engine.library.r1v_sampling_init(engine.handle, byref(old), 16))
    assert (old.struct_size, old.behind) == (16, 77)
    old.max_new_tokens = 3
    sampling = ctypes.cast(ctypes.pointer(old), ctypes.POINTER(c_api.Sampling)).contents
    assert len(ask(engine, "Hello", sampling=sampling)[2]) == 3


def test_calls_that_cannot_be_are_errors_with_a_message(engine, library, nano_bundle, tmp_path):
    def status_of(call):
        with pytest.raises(c_api.StatusError) as raised:
            call()
        assert str(raised.value)
        return raised.value.status

    assert status_of(lambda: c_api.Engine(library, tmp_path)) == c_api.BUNDLE
    assert status_of(lambda: c_api.Engine(library, nano_bundle, threads=-1)) == c_api.USAGE
    assert status_of(lambda: c_api.Engine(library, nano_bundle, onnxruntime_library=b"/no/such")) == c_api.CAPABILITY
    assert status_of(lambda: engine.start("Hello", role="nobody")) == c_api.USAGE
    assert status_of(lambda: engine.start("")) == c_api.INPUT
    assert status_of(lambda: engine.start("Hello", engine.made(c_api.Image, "image"))) == c_api.USAGE
    assert status_of(lambda: engine.start("Hello", sampling=engine.greedy(top_p=7.0))) == c_api.USAGE
    assert status_of(lambda: engine.start("Hello", sampling=engine.greedy(struct_size=0))) == c_api.USAGE
    assert status_of(lambda: engine.start("Hello", sampling=engine.greedy(bias_count=1))) == c_api.USAGE
    assert status_of(lambda: engine.start("Hello", sampling=engine.greedy(logprobs=21))) == c_api.USAGE
    assert status_of(lambda: engine.start("Hello", sampling=engine.greedy(max_reasoning_tokens=-7))) == c_api.USAGE
    huge = engine.made(c_api.Image, "image", data=b"x", size=1, width=2**31 - 1, height=2**31 - 1)
    assert status_of(lambda: engine.start("Hello", huge)) == c_api.INPUT
    request = engine.start("Hello", sampling=engine.greedy(max_new_tokens=1))
    assert status_of(lambda: engine.answer(request)) == c_api.USAGE
    list(engine.events(request))
    assert status_of(lambda: next(engine.events(request))) == c_api.USAGE
    library.r1v_request_free(request)


def test_null_pointers_are_errors_or_nothing(library):
    assert library.r1v_engine_open(None, None, byref(c_void_p())) == c_api.USAGE
    assert library.r1v_engine_open(b"x", None, None) == c_api.USAGE
    assert library.r1v_verify(None, None, None) == c_api.USAGE
    assert library.r1v_request_start(None, None, byref(c_void_p())) == c_api.USAGE
    assert library.r1v_request_next(None, None) == c_api.USAGE
    assert library.r1v_request_answer(None, None) == c_api.USAGE
    assert library.r1v_sampling_init(None, None, 8) == c_api.USAGE
    for name in ("engine_free", "request_free", "request_cancel"):
        getattr(library, f"r1v_{name}")(None)
    library.r1v_image_init(None, 8)
    assert library.r1v_engine_max_positions(None) == 0


def test_an_installed_package_is_found_by_cmake_and_pkg_config(engines, nano_bundle, tmp_path):
    prefix, project, build = tmp_path / "prefix", tmp_path / "project", tmp_path / "build"
    subprocess.run(["cmake", "--install", engines, "--prefix", prefix], check=True, capture_output=True)
    project.mkdir()
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(consumer CXX)\nfind_package(r1v 0.1 REQUIRED)\n"
        "add_executable(consumer main.cpp)\ntarget_link_libraries(consumer PRIVATE r1v::r1v)\n"
    )
    (project / "main.cpp").write_text(
        "#include <r1v/r1v.hpp>\n#include <cstdio>\n"
        "int main(int, char** argv) {\n"
        "  auto engine = r1v::api::Engine::open(argv[1]);\n"
        '  if (!engine) return std::fprintf(stderr, "%s\\n", engine.error().message.c_str()), 1;\n'
        '  auto answer = engine->answer({{"user", argv[3], {{argv[2], {}, 0, 0}}}});\n'
        '  if (!answer) return std::fprintf(stderr, "%s\\n", answer.error().message.c_str()), 1;\n'
        '  std::printf("%s\\n", answer->text.c_str());\n'
        "}\n"
    )
    programs.run("cmake", "-S", project, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    programs.run("cmake", "--build", build)
    environment = {"R1V_ONNXRUNTIME": str(ONNXRUNTIME), "LD_LIBRARY_PATH": str(prefix / "lib")}
    question = "How many objects do you see?"
    ran = subprocess.run(
        [build / "consumer", nano_bundle, COUNT, question], env=environment, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (
        0,
        open_runner(nano_bundle, vision_target="onnxruntime").ask(question, COUNT).text + "\n",
    ), ran.stderr
    (folder,) = prefix.rglob("pkgconfig")
    shown = subprocess.run(
        ["pkg-config", "--modversion", "r1v"],
        env={"PKG_CONFIG_PATH": str(folder), "PATH": "/usr/bin"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip() == VERSION
