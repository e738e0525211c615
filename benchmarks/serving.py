"""Throughput and latency under load: `serve` and Triton against one request at a time, vLLM and llama.cpp's server.

    PYTHONPATH=. .venv/bin/python benchmarks/serving.py --work /tmp/servebench --prepare
    PYTHONPATH=. .venv/bin/python benchmarks/serving.py --work /tmp/servebench

--prepare makes the model (serving_model.py) and the environments of vLLM (3.5 GB) and llama.cpp, outside the lock;
.venv-triton is `make test`'s. Then every server runs by itself, one after another, on the same requests: images that it
has not seen before, answers of one length; and conversations of two turns, whose second prompt begins with the first.
A server that is measured is not measured again (`--work`'s rows/), so a killed run goes on.
`--only NAME` takes some servers, `--minutes 25` begins none after that, `--try` asks little and keeps nothing.
Results: benchmarks/results/<date>-serving-peers.json, and the table of docs/benchmarks.md on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import llama_cpp_oracle
import psutil
import vllm_oracle
from measure import machine, write_results
from serving_load import Api, Clients, levels
from serving_model import Model
from serving_peers import llama_cpp, served, triton, vllm

ROWS = 32
"""Requests that every server may answer together."""
THREADS = psutil.cpu_count(logical=False)
"""Of every server; the clients share them."""
CONVERSATIONS = 3
ALONE = "one at a time"


@dataclass(frozen=True)
class Peer:
    """A server, and with how many clients it is measured."""

    start: Callable[[], AbstractContextManager[str]]
    api: Api = "openai"
    clients: tuple[int, ...] = (1, 4, 16, 32)


def peers(model: Model, triton_environment: Path) -> dict[str, Peer]:
    llama = environment(model, "llama", llama_cpp_oracle.make_environment)
    vllm_python = environment(model, "vllm", vllm_oracle.make_environment)
    found: dict[str, Peer] = {}
    for precision in ("int4", "fp32"):
        bundle = model.bundle(precision)
        found[f"serve {precision}"] = Peer(partial(served, bundle, ROWS))
        found[f"{ALONE} {precision}"] = Peer(partial(served, bundle, 1), clients=(1, 16))
    found["vLLM bf16"] = Peer(partial(vllm, model, vllm_python, ROWS, THREADS))
    for name, bundle_name in {"Q4_0": "gguf4", "bf16": "gguf16"}.items():
        found[f"llama.cpp {name}"] = Peer(partial(llama_cpp, model, bundle_name, llama, ROWS, THREADS))
    for precision in ("int4", "fp32"):
        found[f"triton {precision}"] = Peer(
            partial(triton, model.bundle(precision), triton_environment, ROWS), "triton"
        )
    return found


def environment(model: Model, name: str, make: Callable[[Path], Path]) -> Path:
    """The Python of a peer's environment."""
    return make(model.work / "envs" / name)


def measure(peer: Peer, new_tokens: int, turns: int) -> dict[str, Any]:
    """Medians of a server's turns at each number of clients, and of conversations' first tokens."""
    started, load = time.monotonic(), psutil.getloadavg()[0]
    rows = []
    with peer.start() as url:
        clients = Clients(url, peer.api, new_tokens)
        clients.load(2, 1)  # warm-up
        clients.two_turns()
        starting = time.monotonic() - started
        for count, requests in levels(peer.clients):
            each = [clients.load(count, requests).row() for _ in range(turns)]
            middle = {name: round(median(row[name] for row in each), 2) for name in each[0]}
            rows.append(
                {
                    "clients": count,
                    "requests": requests,
                    **middle,
                    "tokens_per_s_all": [r["tokens_per_s"] for r in each],
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        asked = [clients.two_turns() for _ in range(CONVERSATIONS)]
    first, second = (round(1000 * median(turn[i].arrivals[0] for turn in asked), 1) for i in (0, 1))
    return {
        "load_average_before": round(load, 2),
        "seconds": round(time.monotonic() - started),
        "seconds_to_start_and_warm_up": round(starting),
        "rows": rows,
        "prompt_tokens": [turn.usage["prompt_tokens"] for turn in asked[0]],
        "first_turn_ms": first,
        "second_turn_ms": second,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table of docs/benchmarks.md."""
    counts = (1, 4, 16, 32)
    latency = "p50 (p95, p99), ms, at 1; 16"
    heads = ["server", "tokens/s at 1, 4, 16, 32 clients", f"first token: {latency}", f"between tokens: {latency}"]
    heads.append("first token of a second turn / of the first")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, found in results.items():
        rows = {row["clients"]: row for row in found["rows"]}
        speeds = ", ".join(f"{rows[count]['tokens_per_s']:.1f}" if count in rows else "–" for count in counts)
        first, between = (_latencies(rows, quantity) for quantity in ("first_token_ms", "inter_token_ms"))
        share = found["second_turn_ms"] / found["first_turn_ms"]
        lines.append(f"| {name} | {speeds} | {first} | {between} | {share:.2f} |")
    return "\n".join(lines)


def _latencies(rows: dict[int, dict[str, float]], quantity: str) -> str:
    cells = ([rows[count][f"{quantity}_p{rank}"] for rank in (50, 95, 99)] for count in (1, 16) if count in rows)
    return "; ".join("{:.0f} ({:.0f}, {:.0f})".format(*cell) for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model, environments, logs and rows")
    parser.add_argument(
        "--prepare", action="store_true", help="make the model and the environments, and measure nothing"
    )
    parser.add_argument("--triton", type=Path, default=Path(".venv-triton"), help="environment with a tritonserver")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", action="append", help="the servers whose name contains this; writes no results")
    parser.add_argument("--minutes", type=float, default=60, help="after which no further server is begun")
    parser.add_argument("--try", dest="is_try", action="store_true", help="few short answers, and no results")
    arguments = parser.parse_args()
    model = Model(arguments.work)
    if arguments.prepare:
        model.prepare()
    found = peers(model, arguments.triton)
    if arguments.prepare:
        return
    chosen = {
        name: peer for name, peer in found.items() if not arguments.only or any(n in name for n in arguments.only)
    }
    if arguments.is_try:
        for name, peer in chosen.items():
            row = measure(Peer(peer.start, peer.api, (1, 2)), 4, 1)
            print(name, json.dumps(row), flush=True)
        return
    results = measure_all(chosen, arguments)
    print(table(results))
    settings = {"new_tokens": arguments.new_tokens, "turns": arguments.turns, "rows": ROWS, "threads": THREADS}
    packages = {"vllm": vllm_oracle.PACKAGES[0], "llama.cpp": llama_cpp_oracle.PACKAGE}
    content = {**machine(("onnxruntime", "fastapi", "uvicorn")), "peers": packages, **settings, "servers": results}
    print(write_results("serving-peers", content))


def measure_all(chosen: dict[str, Peer], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What was measured now or by an earlier run, by server."""
    end, results = time.monotonic() + 60 * arguments.minutes, {}
    for name, peer in chosen.items():
        saved = arguments.work / "rows" / f"{name}.json"
        if not saved.exists() and time.monotonic() < end:
            print(name, file=sys.stderr, flush=True)
            saved.parent.mkdir(parents=True, exist_ok=True)
            try:
                saved.write_text(json.dumps(measure(peer, arguments.new_tokens, arguments.turns)), encoding="utf-8")
            except Exception:  # the others are measured all the same
                saved.unlink(missing_ok=True)
                print(name, traceback.format_exc(), file=sys.stderr, flush=True)
        if saved.exists():
            results[name] = json.loads(saved.read_text(encoding="utf-8"))
    return results


if __name__ == "__main__":
    main()
