"""Throughput and latency of `serve` and of Triton under load, against one request at a time; peers in the same run.

    PYTHONPATH=. python benchmarks/serving.py BUNDLE... [--clients 1 4 16 32] [--triton .venv-triton]

Each client asks about an image, reads its stream to the end, and asks again; images and questions are of r1v-nano's
generator, answers are greedy and of a fixed length at most. "one at a time" is the same server with --max-rows 1.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
from measure import machine, write_results

from r1v_export.bundle import Bundle
from r1v_export.deploy.triton.repository import MODELS_FOLDER, TritonOptions, write_repository
from r1v_export.nano.dataset import GeneratedSample, samples

REQUESTS_PER_CLIENT = 4
NEW_TOKENS = 48
TIMEOUT_S = 600


@dataclass
class Times:
    """What the clients of one run saw, in seconds."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0

    def add(self, start: float, arrivals: list[float]) -> None:
        self.first.append(arrivals[0] - start)
        self.between += [later - earlier for earlier, later in pairwise(arrivals)]
        self.tokens += len(arrivals)

    def row(self, seconds: float) -> dict[str, float]:
        return {
            "tokens_per_s": round(self.tokens / seconds, 1),
            **{f"first_token_ms_p{rank}": _ms(self.first, rank) for rank in (50, 95, 99)},
            **{f"inter_token_ms_p{rank}": _ms(self.between, rank) for rank in (50, 95, 99)},
        }


def _ms(values: list[float], rank: int) -> float:
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, rank * len(ordered) // 100)], 2)


def data_url(sample: GeneratedSample) -> str:
    file = io.BytesIO()
    sample.image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@contextmanager
def served(bundle: Path, max_rows: int):
    """`r1v-export serve` on a free port."""
    command = [sys.executable, "-m", "r1v_export.cli.main", "serve", str(bundle), "--port", "0", "--no-access-log"]
    command += ["--served-model-name", "m", "--max-rows", str(max_rows)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found, process.stderr.read()
        yield found[0]
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def triton(bundle: Path, environment: Path, max_rows: int):
    """The deployment of a bundle in a real tritonserver."""
    os.environ["R1V_TRITON_ENVIRONMENT"] = str(environment)
    from tests.deploy.triton.tritonserver import TritonServer

    with tempfile.TemporaryDirectory() as scratch:
        deployment = Path(scratch, "deployment")
        write_repository(Bundle.open(bundle), deployment, TritonOptions(max_rows=max_rows))
        server = TritonServer(deployment / MODELS_FOLDER, Path(scratch))
        try:
            server.wait_until_ready()
            yield server.url
        finally:
            server.stop()


def openai_request(sample: GeneratedSample, url: str) -> tuple[str, dict[str, Any], Callable[[dict[str, Any]], int]]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(sample)}}, {"type": "text", "text": sample.question}]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}], "stream": True}
    body |= {"temperature": 0, "max_tokens": NEW_TOKENS, "logprobs": True}  # so that every token is an event
    return f"{url}/v1/chat/completions", body, lambda event: bool(event["choices"][0]["logprobs"])


def triton_request(sample: GeneratedSample, url: str) -> tuple[str, dict[str, Any], Callable[[dict[str, Any]], int]]:
    sampling = json.dumps({"temperature": 0, "max_tokens": NEW_TOKENS})
    body = {"text_input": sample.question, "image": data_url(sample), "sampling_parameters": sampling}
    return f"{url}/v2/models/r1v/generate_stream", body, lambda event: np.size(event["token_ids"])


async def events(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    async with client.stream("POST", url, json=body, timeout=TIMEOUT_S) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


async def load(url: str, make: Callable[..., Any], clients: int, asked: list[GeneratedSample]) -> dict[str, float]:
    times = Times()

    async def one(index: int) -> None:
        for number in range(REQUESTS_PER_CLIENT):
            address, body, tokens_in = make(asked[(index * REQUESTS_PER_CLIENT + number) % len(asked)], url)
            start = time.perf_counter()
            arrivals: list[float] = []
            async for event in events(client, address, body):  # of Triton, an event may have several tokens
                arrivals += [time.perf_counter()] * int(tokens_in(event))
            times.add(start, arrivals)

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as client:
        start = time.perf_counter()
        await asyncio.gather(*(one(index) for index in range(clients)))
        return times.row(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16, 32])
    parser.add_argument("--triton", type=Path, help="environment with a tritonserver")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    asked = list(samples("eval", max(arguments.clients) * REQUESTS_PER_CLIENT))
    rows = []
    for bundle in arguments.bundles:
        servers = {
            "serve": (lambda b=bundle: served(b, 16), openai_request),
            "one at a time": (lambda b=bundle: served(b, 1), openai_request),
        }
        if arguments.triton:
            servers["triton"] = (lambda b=bundle: triton(b, arguments.triton, 16), triton_request)
        for name, (start, make) in servers.items():
            with start() as url:
                asyncio.run(load(url, make, 2, asked))  # warm-up
                for clients in arguments.clients:
                    runs = [asyncio.run(load(url, make, clients, asked)) for _ in range(arguments.runs)]
                    middle = {key: round(median(run[key] for run in runs), 2) for key in runs[0]}
                    rows.append({"bundle": bundle.name, "server": name, "clients": clients, **middle})
                    print(json.dumps(rows[-1]), flush=True)
    settings = {"runs": arguments.runs, "requests_per_client": REQUESTS_PER_CLIENT, "new_tokens": NEW_TOKENS}
    print(write_results("serving", {**machine(("onnxruntime", "fastapi", "uvicorn")), **settings, "rows": rows}))


if __name__ == "__main__":
    main()
