"""libr1v decodes with TensorRT-LLM: libraries that stand in for it are asked what Python's stand-in is asked, and
answers, made of the tokens of the project's own reader, are what `r1v-export run` prints."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.cli.main import cli, run
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.generation import Sampling
from r1v_export.pipeline.build import build
from r1v_export.reference.model import load
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.prompt_encoder import Request
from tests.engines import c_api, programs
from tests.engines.conftest import ONNXRUNTIME
from tests.runner.test_open_runner import fit_manifest
from tests.targets.tensorrt_llm import stand_in
from tests.targets.tensorrt_llm.build.test_command import stand_in as stand_in_program

CHART, SHAPE = (programs.REPOSITORY / "examples/images" / name for name in ("05-chart.png", "02-shape.png"))
QUESTION = "How tall is the green bar?"
MOST = 60

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without an engine of another target: standard graphs encode the images."""
    out = tmp_path_factory.mktemp("libr1v-trtllm") / "bundle"
    return build(BuildConfig(parity=ParityConfig(enabled=False), targets=("tensorrt-llm",)), out).out


@pytest.fixture
def engine(bundle: Path, tmp_path: Path) -> Path:
    """Of `r1v-export engine`, with a stand-in for trtllm-build."""
    program = stand_in_program(tmp_path / "environment", "1.2.0")
    assert run(["engine", str(bundle), "-o", str(tmp_path / "engine"), "--program", str(program)]) == 0
    return tmp_path / "engine"


@pytest.fixture
def settings(engines: Path) -> dict[str, str]:
    """The environment in which libr1v finds everything."""
    folder = engines / "engines/tests/tensorrt_llm"
    return {
        "R1V_TENSORRT_LLM": str(folder / "tensorrt-llm-1.2.0/libs"),
        "R1V_TENSORRT_LLM_MODULE": str(folder / "libr1v_tensorrt_llm.so"),
        "R1V_ONNXRUNTIME": str(ONNXRUNTIME),
    }


@pytest.fixture
def r1v_with_trtllm(engines: Path, settings: dict[str, str]) -> Run:
    """Runs the program `r1v`, in another environment too."""

    def run_program(*arguments: object, **changed: str) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in (engines / "engines/cli/r1v", *arguments)]
        environment = os.environ | settings | changed
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    return run_program


def script(engine: Path, *answers: tuple[int, ...]) -> None:
    """Have the library that stands in answer with these tokens, one answer after the other."""
    (engine / "rank0.engine").write_text(json.dumps({"answers": answers}))
    (engine / "requests.jsonl").unlink(missing_ok=True)


def requests(engine: Path) -> list[dict[str, Any]]:
    """What it was asked."""
    return [json.loads(line) for line in (engine / "requests.jsonl").read_text().splitlines()]


def python_output(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("images", "options"),
    [((CHART,), ()), ((CHART, SHAPE), ()), ((), ("--no-think",)), ((CHART,), ("--stop", "bar"))],
    ids=["an image", "two", "none, no reasoning", "a stop string"],
)
def test_the_program_prints_what_the_project_s_own_reader_answers(bundle, engine, r1v_with_trtllm, images, options):
    asked = [*(word for image in images for word in ("--image", image)), QUESTION, "--max-new-tokens", MOST, "--greedy"]
    own = open_runner(bundle)
    request = Request.ask(QUESTION, *map(Image.open, images), think="--no-think" not in options)
    script(engine, own.answer(request, Sampling(max_new_tokens=MOST)).token_ids)
    ran = r1v_with_trtllm("run", bundle, "--engine", engine, *asked, *options)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == python_output("run", bundle, *asked, *options)


def test_the_library_is_asked_what_python_asks(bundle, engine, r1v_with_trtllm, monkeypatch):
    drawn = Sampling(max_new_tokens=9, temperature=0.5, top_p=0.75, top_k=40, seed=11)
    script(engine, (5,))
    options = ["--temperature", "0.5", "--top-p", "0.75", "--top-k", "40", "--seed", "11", "--max-new-tokens", "9"]
    images = ["--image", CHART, "--image", SHAPE]
    assert r1v_with_trtllm("run", bundle, "--engine", engine, *images, QUESTION, *options).returncode == 0
    (ours,) = requests(engine)
    library = stand_in.install(monkeypatch, load(Checkpoint.open()))
    runner = open_runner(bundle, engine=str(engine))
    runner.answer(Request.ask(QUESTION, Image.open(CHART), Image.open(SHAPE)), drawn)
    ((_, executor),) = library.executor.opened
    (theirs,) = executor.requests
    assert ours["token_ids"] == theirs.input_token_ids
    table = theirs.prompt_tuning_config
    assert [bool(extra) for extra in ours["extra_ids"]] == [bool(extra) for extra in table.input_token_extra_ids]
    assert len(set(ours["extra_ids"])) == len(set(table.input_token_extra_ids)) == 3
    rows = np.array(ours["table"]).reshape(table.embedding_table.shape)
    np.testing.assert_allclose(rows, table.embedding_table.to(torch.float32).numpy(), rtol=1e-3, atol=1e-4)
    assert (ours["end_id"], ours["stop_words"], ours["max_tokens"]) == (theirs.end_id, theirs.stop_words or [], 9)
    for name in ("top_k", "top_p", "temperature", "seed"):
        assert ours[name] == getattr(theirs.sampling_config, name)


def test_requests_of_the_c_api_are_open_at_the_same_time(bundle, engine, engines, settings, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    own = open_runner(bundle)
    answers = [own.ask(QUESTION, image, sampling=Sampling(max_new_tokens=MOST)) for image in (CHART, SHAPE)]
    script(engine, *(answer.token_ids for answer in answers))
    library = c_api.load(engines / "engines/api/libr1v.so")
    opened = c_api.Engine(library, bundle, engine=str(engine).encode())
    try:
        assert b"tensorrt-llm 1.2.0, executor; images: onnxruntime" in library.r1v_engine_description(opened.handle)
        files = [opened.made(c_api.Image, "image", path=str(path).encode()) for path in (CHART, SHAPE)]
        sampling = opened.greedy(max_new_tokens=MOST)
        started = [opened.start(QUESTION, file, sampling=sampling) for file in files]
        for each in started[::-1]:
            list(opened.events(each))
        found = [opened.answer(each) for each in started]
        assert {each.text.decode() for each in found} == {answer.text for answer in answers}
        assert {each.reasoning.decode() for each in found} == {answer.reasoning for answer in answers}
        for each in started:
            library.r1v_request_free(each)
    finally:
        opened.close()


@pytest.fixture
def with_plan(bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose pipeline.json also names plans of TensorRT, which the libr1v of the tests is not compiled for."""
    out = Path(shutil.copytree(bundle, tmp_path / "with-plan"))
    pipeline = json.loads((out / "pipeline.json").read_text())
    pipeline["engines"]["tensorrt"] = {"files": {}, "options": {}}
    (out / "pipeline.json").write_text(json.dumps(pipeline))
    fit_manifest(out)
    return out


WHY = "the plan of tensorrt does not run here, so another engine encodes images: This libr1v was compiled without"


def test_the_program_says_why_a_plan_does_not_encode_images(with_plan, engine, r1v_with_trtllm):
    script(engine, (5, 6, 7))
    asked = ["--engine", engine, "--image", CHART, QUESTION, "--max-new-tokens", "3"]
    ran = r1v_with_trtllm("run", with_plan, *asked)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.startswith(f"warning: {WHY} TensorRT.\n  where:    ")
    assert "-DR1V_TENSORRT_INCLUDE=FOLDER" in ran.stderr


def test_the_c_api_says_why_a_plan_does_not_encode_images(with_plan, engine, engines, settings, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    script(engine, (5,))
    warnings: list[tuple[int, str]] = []
    warn = c_api.WARN(lambda context, message: warnings.append((context, message.decode())))
    options = {"engine": str(engine).encode(), "warn": ctypes.cast(warn, ctypes.c_void_p), "warn_context": 7}
    library = c_api.load(engines / "engines/api/libr1v.so")
    c_api.Engine(library, with_plan, **options).close()
    ((context, message),) = warnings
    assert (context, message.startswith(WHY)) == (7, True)
    # A caller compiled before the fields were there: what lies behind its struct is not read.
    c_api.Engine(library, with_plan, **options, struct_size=c_api.EngineOptions.warn.offset).close()
    assert len(warnings) == 1


def test_bench_and_verify_take_such_a_bundle(bundle, engine, r1v_with_trtllm):
    script(engine, (5,) * 8)
    ran = r1v_with_trtllm("bench", bundle, "--engine", engine, "--image", CHART, "--tokens", "8", "--runs", "2")
    assert ran.returncode == 0, ran.stderr
    assert "tensorrt-llm 1.2.0, executor; images: onnxruntime" in ran.stdout
    assert r1v_with_trtllm("verify", bundle).returncode == 0


def test_what_is_missing_is_said_with_its_exit_code(bundle, engine, engines, r1v_with_trtllm, nano_bundle, tmp_path):
    def refused(*arguments: object, **changed: str) -> tuple[int, str]:
        ran = r1v_with_trtllm("run", *arguments, "Hi", **changed)
        return ran.returncode, ran.stderr

    folder = engines / "engines/tests/tensorrt_llm"
    code, said = refused(bundle, "--engine", engine, R1V_TENSORRT_LLM=str(folder / "tensorrt-llm-1.3.0/libs"))
    assert (code, "later releases have no engines" in said) == (4, True)
    code, said = refused(bundle, "--engine", engine, R1V_TENSORRT_LLM=str(tmp_path))
    assert (code, "no TensorRT-LLM in this folder" in said) == (4, True)
    code, said = refused(bundle, "--engine", engine, R1V_TENSORRT_LLM_MODULE=str(tmp_path / "none.so"))
    assert (code, "compiled without TensorRT-LLM" in said) == (4, True)
    code, said = refused(bundle)
    assert (code, "--engine" in said) == (2, True)
    code, said = refused(nano_bundle, "--engine", engine)
    assert (code, "no checkpoint" in said) == (1, True)
    code, said = refused(bundle, "--engine", engine, "--min-p", "0.1")
    assert (code, "sampling.min_p" in said) == (2, True)
    other = Path(shutil.copytree(engine, tmp_path / "other"))
    (other / "r1v_export.json").write_text('{"config.json": "0"}')
    code, said = refused(bundle, "--engine", other)
    assert (code, "another checkpoint" in said) == (1, True)
