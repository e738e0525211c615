from __future__ import annotations

import base64
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from r1v_export.generation import Sampling
from r1v_export.runner.batching.batching_runner import BatchingRunner
from r1v_export.runner.batching.options import BatchingOptions
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.prompt_encoder import Request
from r1v_export.serve.app import create_app
from r1v_export.serve.settings import Limits, ServerSettings
from tests.runner.conftest import engine, runner

__all__ = ["engine", "runner"]

MODEL = "tiny"
IMAGES = sorted(Path("examples/images").glob("*.png"))[:6]
QUESTIONS = ("How many objects do you see?", "What do you see?", "How tall is the green bar?")
NEW_TOKENS = 64
"""Of an answer of the shipped model, at most."""


@pytest.fixture
def client(runner) -> Iterator[TestClient]:
    """A client of an application over a tiny random model."""
    with serving(runner) as client:
        yield client


@contextmanager
def serving(runner, limits: Limits | None = None, options: BatchingOptions | None = None, **settings):
    app = create_app(BatchingRunner(runner, options), ServerSettings(MODEL, limits=limits or Limits(), **settings))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def messages(image: Path | None, question: str) -> list[dict]:
    shown = [{"type": "image_url", "image_url": {"url": data_url(image)}}] if image else []
    return [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]


class Server:
    """`r1v-export serve` in a process of its own."""

    def __init__(self, bundle: Path, *options: str) -> None:
        command = [sys.executable, "-m", "r1v_export.cli.main", "serve", str(bundle), "--port", "0", *options]
        # Its access log goes to stdout, the announcement to stderr.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        announced = re.search(r"http://\S+", line)
        if announced is None:
            self.process.kill()
            raise AssertionError(f"the first line has no address: {line}{self.process.stderr.read()}")
        self.url = announced[0]

    def metrics(self) -> dict[str, float]:
        """What /metrics says, but for what it tells apart by labels."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=60).text)
        return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}

    def stop(self) -> str:
        """End it as an orchestrator does, and return what it wrote to stdout."""
        self.process.send_signal(signal.SIGTERM)
        output, errors = self.process.communicate(timeout=60)
        assert "Traceback" not in errors, errors
        return output


@pytest.fixture(scope="session")
def served(nano_bundle: Path) -> Iterator[str]:
    """The address of a server over the shipped model, called "nano"."""
    server = Server(nano_bundle, "--served-model-name", "nano", "--max-rows", "8")
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def start_server(nano_bundle: Path) -> Callable[..., Server]:
    return lambda *options: Server(nano_bundle, "--served-model-name", "nano", *options)


@pytest.fixture(scope="session")
def alone(nano_bundle: Path):
    """Image, question -> reasoning and answer of a lone request to the bundle's runner, greedy."""
    runner = open_runner(nano_bundle)
    answers: dict[tuple[Path | None, str], tuple[str, str]] = {}

    def answer(image: Path | None, question: str) -> tuple[str, str]:
        if (image, question) not in answers:
            shown = [Image.open(image)] if image else []
            found = runner.answer(Request.ask(question, *shown), Sampling(max_new_tokens=NEW_TOKENS))
            answers[image, question] = found.reasoning, found.text
        return answers[image, question]

    return answer
