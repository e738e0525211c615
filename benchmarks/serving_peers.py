"""Servers of one model that take turns in serving.py: ours, ours in Triton, vLLM and llama.cpp."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from serving_model import Model

from r1v_export.bundle import Bundle
from r1v_export.deploy.triton.repository import MODELS_FOLDER, TritonOptions, write_repository
from r1v_export.targets.images import encoding_target

START_S = 900
"""vLLM compiles for minutes, the first time."""
CONTEXT = 2048
"""Tokens of a prompt and its answer, at most, where a server takes a limit."""


@contextmanager
def served(bundle: Path, max_rows: int) -> Iterator[str]:
    """`r1v-export serve` on a free port; the model's name is "m"."""
    command = [sys.executable, "-m", "r1v_export.cli.main", "serve", str(bundle), "--port", "0", "--no-access-log"]
    command += ["--served-model-name", "m", "--max-rows", str(max_rows), *_others(bundle)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found, process.stderr.read()
        yield found[0]
    finally:
        _end(process)


def _others(bundle: Path) -> list[str]:
    """What `auto` takes where a gate has passed, for images and decoder; gates of random weights vouch for nothing."""
    engine = bundle / "engines" / "onnxruntime"
    if encoding_target("openvino").why_not_images("bfloat16"):
        return ["--vision-target", "onnxruntime-int8"] if (engine / "images" / "onnxruntime").is_dir() else []
    parts = {"--vision-target": "images", "--decoder-target": "decoder"}
    there = [option for option, part in parts.items() if (engine / part / "openvino").is_dir()]
    return [word for option in there for word in (option, "openvino")]


@contextmanager
def triton(bundle: Path, environment: Path, max_rows: int, library: Path | None = None) -> Iterator[str]:
    """The deployment of a bundle in a real tritonserver: Python's, or that of `libtriton_r1v.so`."""
    os.environ["R1V_TRITON_ENVIRONMENT"] = str(environment)
    from tests.deploy.triton.tritonserver import TritonServer

    with tempfile.TemporaryDirectory() as scratch:
        deployment = Path(scratch, "deployment")
        options = TritonOptions(max_rows=max_rows, backend="python" if library is None else "r1v")
        write_repository(Bundle.open(bundle), deployment, options)
        server = TritonServer(deployment / MODELS_FOLDER, Path(scratch), library)
        try:
            server.wait_until_ready()
            yield server.url
        finally:
            server.stop()


@contextmanager
def vllm(model: Model, python: Path, max_rows: int, threads: int) -> Iterator[str]:
    """vLLM's own server on the CPU: bfloat16, its default compilation, prefix cache on."""
    from tests.deploy.triton.tritonserver import _free_ports

    (port,) = _free_ports(1)
    options = {
        "--served-model-name": "m",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "bfloat16",
        "--max-model-len": str(CONTEXT),
        "--max-num-seqs": str(max_rows),
        "--limit-mm-per-prompt": json.dumps({"image": 1}),
    }
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model.checkpoint]
    command += ["--trust-remote-code", "--skip-mm-profiling"]
    command += [word for option in options.items() for word in option]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(START_S),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(model.work / "vllm/modules"),
        "VLLM_CACHE_ROOT": str(model.work / "vllm/cache"),
    }
    with (model.work / "vllm.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, f"{url}/health", model.work / "vllm.log")
        yield url
    finally:
        _end(process)


@contextmanager
def llama_cpp(model: Model, bundle: str, python: Path, max_rows: int, threads: int) -> Iterator[str]:
    """llama.cpp's server with as many slots as there are rows."""
    engine = model.bundle(bundle) / "engines/gguf"
    command = [python, Path(__file__).parent / "llama_cpp_server.py", engine / "model.gguf", engine / "mmproj.gguf"]
    command += ["--slots", str(max_rows), "--slot-context", str(CONTEXT), "--threads", str(threads)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = model.work / f"{bundle}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        url = next((line.strip() for line in process.stdout if line.startswith("http")), "")
        _wait(process, f"{url}/health", log)
        yield url
    finally:
        process.kill()  # its threads do not end by themselves
        process.wait()


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"no server at {url}:\n{log.read_text(errors='replace')[-4000:]}")


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
