"""`run` and `bench` with TensorRT-LLM decoding: stand-ins compute with the shipped model, so answers must be those of
the project's own reader, byte for byte. Whatever is missing or does not match is reported, with its exit code."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fastapi.testclient import TestClient
from PIL import Image

from r1v_export.bundle import Bundle
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.cli import main
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.deploy.triton.models.llm import TritonPythonModel as LlmModel
from r1v_export.deploy.triton.models.vision import TritonPythonModel as VisionModel
from r1v_export.deploy.triton.repository import TritonOptions, model_configs, write_repository
from r1v_export.generation import Sampling
from r1v_export.pipeline.build import build
from r1v_export.processing.preprocess import pixel_values
from r1v_export.reference.model import Model, load
from r1v_export.runner.batching.batching_runner import BatchingRunner
from r1v_export.runner.batching.options import BatchingOptions
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.prompt_encoder import Request
from r1v_export.serve.app import create_app
from r1v_export.serve.settings import ServerSettings
from r1v_export.targets.hf_unified.runtime.reader import open_unified
from r1v_export.targets.tensorrt_llm.build.engine_plan import ORIGIN
from r1v_export.targets.tensorrt_llm.runtime.deployment import open_deployment
from tests.deploy.triton.models import stand_in as triton
from tests.deploy.triton.models.conftest import backend
from tests.serve.conftest import messages
from tests.targets.gpu_stand_ins import on_gpus
from tests.targets.tensorrt_llm import stand_in
from tests.targets.tensorrt_llm.build.test_command import stand_in as stand_in_program

__all__ = ["backend"]

IMAGES = Path(__file__).parents[4] / "examples" / "images"
ASKED = ["--image", str(IMAGES / "05-chart.png"), "How tall is the green bar?"]
TWO = ["--image", str(IMAGES / "05-chart.png"), "--image", str(IMAGES / "02-shape.png"), "What do you see?"]


def built(out: Path, **fields: Any) -> Path:
    return build(BuildConfig(parity=ParityConfig(enabled=False), **fields), out).out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("trtllm") / "bundle", targets=("tensorrt-llm",))


@pytest.fixture(scope="module")
def unified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unified") / "bundle"
    return built(out, precision="int4", recipe="int4-rtn", targets=("hf-unified", "onnxruntime"))


@pytest.fixture(scope="module")
def model() -> Model:
    return load(Checkpoint.open())


@pytest.fixture(scope="module")
def engine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `r1v-export engine`, with a stand-in for trtllm-build."""
    folder = tmp_path_factory.mktemp("engine")
    program = stand_in_program(folder / "environment", "1.2.0")
    assert main.run(["engine", str(bundle), "-o", str(folder / "engine"), "--program", str(program)]) == 0
    return folder / "engine"


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]):
    """Run a command line that must succeed; what it prints."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert main.run([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Run a command line that must fail; its exit code and what it says."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        code = main.run([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return run


class TestExecutor:
    @pytest.mark.parametrize("asked", [ASKED, TWO, [*ASKED, "--no-think"]], ids=["an image", "two", "no reasoning"])
    def test_run_streams_what_the_project_s_own_reader_answers(
        self, bundle, engine, model, printed, monkeypatch, asked
    ):
        own = printed("run", bundle, *asked, "--max-new-tokens", "80")
        library = stand_in.install(monkeypatch, model)

        assert (
            printed("run", bundle, "--target", "tensorrt-llm", "--engine", engine, *asked, "--max-new-tokens", "80")
            == own
        )

        ((folder, executor),) = library.executor.opened
        assert folder == str(engine)
        assert executor.requests[0].prompt_tuning_config is not None
        assert executor.working == {}

    def test_the_answer_as_json_is_the_same_token_for_token(self, bundle, engine, model, printed, monkeypatch):
        own = json.loads(printed("run", bundle, *ASKED, "--format", "json"))
        stand_in.install(monkeypatch, model)

        deployed = json.loads(printed("run", bundle, "--engine", engine, *ASKED, "--format", "json"))

        assert own.pop("timings").keys() == deployed.pop("timings").keys()
        assert deployed == own
        assert own["finish_reason"] == "stop"

    def test_a_conversation_is_that_of_our_own_loop(self, bundle, engine, model, monkeypatch):
        lines = f"/image {IMAGES / '05-chart.png'}\nHow tall is the green bar?\nAnd the blue one?\n"

        def talk(*options: str | Path) -> str:
            command = ["run", str(bundle), "--chat", "--answer-only", "--max-new-tokens", "60", *map(str, options)]
            run = CliRunner().invoke(main.cli, command, input=lines)
            assert run.exit_code == 0, run.output
            return run.stdout

        own = talk()
        stand_in.install(monkeypatch, model)

        assert talk("--engine", engine) == own
        assert len(own.splitlines()) >= 2

    def test_serve_answers_what_our_own_loop_does_and_refuses_what_the_library_lacks(
        self, bundle, engine, model, monkeypatch
    ):
        asked = {"model": "m", "messages": messages(IMAGES / "05-chart.png", "How tall is the green bar?")}
        asked |= {"temperature": 0, "max_tokens": 60}
        expected = open_runner(bundle).answer(
            Request.ask("How tall is the green bar?", Image.open(IMAGES / "05-chart.png")), Sampling(max_new_tokens=60)
        )
        library = stand_in.install(monkeypatch, model)
        runner = BatchingRunner(open_runner(bundle, engine=str(engine)), BatchingOptions(max_rows=2))
        with TestClient(create_app(runner, ServerSettings("m")), raise_server_exceptions=False) as client:
            with ThreadPoolExecutor(3) as pool:
                answers = list(pool.map(lambda _: client.post("/v1/chat/completions", json=asked).json(), range(3)))
            refused = client.post("/v1/chat/completions", json={**asked, "logprobs": True})
            metrics = client.get("/metrics").text
        for answer in answers:
            message = answer["choices"][0]["message"]
            assert (message["reasoning"], message["content"]) == (expected.reasoning, expected.text)
            assert answer["usage"]["completion_tokens"] == len(expected.token_ids)
        ((_, executor),) = library.executor.opened
        assert (executor.open_at_once, executor.working) == (2, {})
        assert refused.status_code == 400
        assert "logprobs" in refused.json()["error"]["message"]
        assert "r1v_generated_tokens_total" in metrics
        assert "r1v_cache_bytes" not in metrics

    def test_a_triton_deployment_has_the_models_and_tensors_of_every_other_and_its_engine(
        self, bundle, engine, tmp_path
    ):
        out = tmp_path / "deployment"
        write_repository(Bundle.open(bundle), out, TritonOptions(engine=str(engine), device="cuda"))
        opened = Bundle.open(bundle)
        other = {each.name: each for each in model_configs(opened, TritonOptions(), "onnxruntime")}
        ours = {each.name: each for each in model_configs(opened, TritonOptions(engine=str(engine)), "tensorrt-llm")}
        assert {name: (each.inputs, each.outputs) for name, each in ours.items()} == {
            name: (each.inputs, each.outputs) for name, each in other.items()
        }
        assert (out / "engine" / "rank0.engine").read_bytes() == (engine / "rank0.engine").read_bytes()
        docker = (out / "Dockerfile").read_text()
        assert ".whl[tensorrt-llm,build,onnxruntime-gpu]" in docker
        assert "COPY engine /deployment/engine" in docker
        assert "KIND_CPU" in (out / "models" / "r1v_llm" / "config.pbtxt").read_text()

    @pytest.mark.usefixtures("backend")
    def test_its_models_answer_what_our_own_loop_does(self, bundle, engine, model, monkeypatch, tmp_path):
        out = tmp_path / "deployment"
        write_repository(Bundle.open(bundle), out, TritonOptions(engine=str(engine), max_rows=2))
        image = Image.open(IMAGES / "05-chart.png")
        request = Request.ask("How tall is the green bar?", image)
        own = open_runner(bundle)
        expected = own.answer(request, Sampling(max_new_tokens=60))
        library = stand_in.install(monkeypatch, model)
        vision, llm = VisionModel(), LlmModel()
        vision.initialize(triton.arguments(out, "r1v_vision"))
        llm.initialize(triton.arguments(out, "r1v_llm"))
        ((folder, executor),) = library.executor.opened
        assert folder == str((out / "engine").resolve())

        pixels, tiles = pixel_values([image], own.tiling, own.image_policy)
        (encoded,) = vision.execute([triton.Request(pixel_values=pixels)])
        asked = {
            "input_ids": np.array(own.tokenize(request)),
            "image_embeds": encoded.outputs["image_embeds"],
            "tiles_per_image": np.array(tiles),
            "thinking": np.array([True]),
            "sampling_parameters": np.array([b'{"temperature": 0, "max_tokens": 60}'], dtype=np.object_),
        }
        requests = [triton.Request(**asked) for _ in range(3)]
        llm.execute(requests)
        for each in requests:
            assert each.token_ids() == expected.token_ids
            text = b"".join(response.outputs["text_output"][0] for response in each.responses)
            assert text.decode() == expected.text
        refused = triton.Request(**asked | {"sampling_parameters": np.array([b'{"min_p": 0.5}'], dtype=np.object_)})
        llm.execute([refused])
        assert refused.ended.wait(60)
        assert refused.responses[-1].error.code == "INVALID_ARG"
        assert "min_p" in refused.responses[-1].error.text
        llm.finalize()
        assert executor.working == {}

    def test_a_deployment_without_an_engine_or_with_another_s_is_refused(self, bundle, engine, tmp_path, refused):
        code, said = refused("deploy", "triton", bundle, "-o", tmp_path / "out")
        assert code == 2
        assert "a folder of `r1v-export engine`" in said
        other = Path(shutil.copytree(engine, tmp_path / "engine"))
        (other / ORIGIN).write_text('{"config.json": "0"}')
        code, said = refused("deploy", "triton", bundle, "-o", tmp_path / "out", "--engine", other)
        assert code == 1
        assert "another checkpoint" in said
        code, said = refused("deploy", "triton", bundle, "-o", tmp_path / "out", "--engine", engine, "--cache-mib", "9")
        assert code == 2
        assert "sizes its cache" in said
        assert not (tmp_path / "out").exists()

    def test_bench_measures_it(self, bundle, engine, model, printed, monkeypatch):
        stand_in.install(monkeypatch, model)
        options = ["--tokens", "4", "--runs", "1", "--format", "json"]

        result = json.loads(printed("bench", bundle, "--engine", engine, *options))

        assert (result["engine"], result["new_tokens"]) == ("tensorrt-llm executor", 4)
        assert result["stages_ms"]["prefill_ms"] > 0

    def test_without_the_library_the_exit_code_is_4(self, bundle, engine, refused):
        code, said = refused("run", bundle, "--engine", engine, *ASKED)

        assert code == 4
        assert "TensorRT-LLM is not installed" in said

    def test_without_a_gpu_the_exit_code_is_4(self, bundle, engine, model, refused, monkeypatch):
        stand_in.install(monkeypatch, model)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

        code, said = refused("run", bundle, "--engine", engine, *ASKED)

        assert code == 4
        assert "1 CUDA GPU" in said

    def test_a_folder_without_an_engine_is_reported(self, bundle, tmp_path, refused):
        code, said = refused("run", bundle, "--engine", tmp_path / "none", *ASKED)

        assert code == 1
        assert "none/config.json" in said

    def test_an_engine_with_other_sizes_is_refused(self, bundle, engine, tmp_path, refused):
        other = Path(shutil.copytree(engine, tmp_path / "engine"))
        config = json.loads((other / "config.json").read_text())
        config["build_config"]["max_batch_size"] = 99
        (other / "config.json").write_text(json.dumps(config))

        code, said = refused("run", bundle, "--engine", other, *ASKED)

        assert code == 1
        assert "found:    max_batch_size 99" in said

    def test_an_engine_of_another_checkpoint_is_refused(self, bundle, engine, tmp_path, refused):
        other = Path(shutil.copytree(engine, tmp_path / "engine"))
        origin = json.loads((other / ORIGIN).read_text())
        (other / ORIGIN).write_text(json.dumps({path: hash_[::-1] for path, hash_ in origin.items()}))

        code, said = refused("run", bundle, "--engine", other, *ASKED)

        assert code == 1
        assert "another checkpoint" in said

    def test_an_engine_that_was_built_by_hand_runs(self, bundle, engine, tmp_path, model, printed, monkeypatch):
        other = Path(shutil.copytree(engine, tmp_path / "engine"))
        (other / ORIGIN).unlink()
        stand_in.install(monkeypatch, model)

        assert "</think>\n5\n" in printed("run", bundle, "--engine", other, *ASKED)

    def test_a_bundle_without_such_a_checkpoint_is_reported(self, unified, engine, refused):
        code, said = refused("run", unified, "--engine", engine, *ASKED)

        assert code == 2
        assert "no target that this engine belongs to" in said
        assert "tensorrt-llm" in said

    @pytest.mark.parametrize(("target", "asked_for"), [("tensorrt-llm", "llm-api"), ("pytorch", "engine")])
    def test_target_and_engine_must_go_together(self, bundle, refused, target, asked_for):
        code, said = refused("run", bundle, "--target", target, "--engine", asked_for, *ASKED)

        assert code == 2
        assert "not built for this target" in said

    def test_vision_is_loaded_before_the_executor_takes_the_memory(self, bundle, engine, model, monkeypatch):
        library, engines = stand_in.install(monkeypatch, model), on_gpus(monkeypatch)
        real = library.executor.Executor

        def open_(*arguments: Any) -> Any:
            assert [each.looked for each in engines] == [4]
            return real(*arguments)

        library.executor.Executor = open_

        open_deployment(Bundle.open(bundle), engine, "cuda", tiles_per_gpu=4)

        assert len(library.executor.opened) == 1


class TestLlmApi:
    def test_run_answers_as_the_project_s_own_reader(self, unified, printed, monkeypatch):
        own = printed("run", unified, "--target", "hf-unified", *ASKED)
        spec = Bundle.open(unified).spec
        quantized = open_unified(unified / "engines" / "hf-unified", spec, "cpu").model
        library = stand_in.install(monkeypatch, quantized, "1.3.0", dtype=torch.bfloat16)

        assert printed("run", unified, "--target", "hf-unified", "--engine", "llm-api", *ASKED) == own
        assert library.loaded == [(str(unified / "engines" / "hf-unified"), 1)]

    def test_images_that_the_model_would_not_see_are_refused(self, unified, model, refused, monkeypatch):
        stand_in.install(monkeypatch, model, takes_embeddings=False)

        code, said = refused("run", unified, "--engine", "llm-api", *ASKED)

        assert code == 4
        assert "would ignore the images" in said

    def test_without_the_library_the_exit_code_is_4(self, unified, refused):
        code, said = refused("run", unified, "--engine", "llm-api", *ASKED)

        assert code == 4
        assert "TensorRT-LLM is not installed" in said
