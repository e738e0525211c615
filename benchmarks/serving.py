"""Throughput and latency under load: `serve` and Triton against one request at a time, vLLM and llama.cpp's server.

    PYTHONPATH=. .venv/bin/python benchmarks/serving.py --work /tmp/servebench --prepare
    PYTHONPATH=. .venv/bin/python benchmarks/serving.py --work /tmp/servebench

--prepare makes the model (serving_model.py) and the environments of vLLM (3.5 GB) and llama.cpp, outside the lock;
.venv-triton is `make test`'s. Then every server runs by itself, one after another, on the same requests: images that it
has not seen before, answers of one length; and conversations of two turns, whose second prompt begins with the first.
A server that is measured is not measured again (`--work`'s rows/), so a killed run goes on.
`--only NAME` takes some servers, `--minutes 25` begins none after that, `--try` asks little and keeps nothing.
Results: benchmarks/results/<date>-serving-peers.json, from which tables.py writes a table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import llama_cpp_oracle
import psutil
import vllm_oracle
from measure import OthersLoad, machine, write_results
from serving_load import Api, Clients
from serving_model import Model
from serving_peers import llama_cpp, served, triton, vllm

ROWS = 32
"""Requests that every server may answer together."""
THREADS = psutil.cpu_count(logical=False)
"""Of every server; the clients share them."""
CONVERSATIONS = 3
ALONE = "one at a time"
PRECISIONS = ("int4", "fp32")


@dataclass(frozen=True)
class Peer:
    """A server, and how it is measured: numbers of clients -> turns, of which the median is reported."""

    start: Callable[[], AbstractContextManager[str]]
    api: Api = "openai"
    turns: Mapping[int, int] = field(default_factory=lambda: {1: 3, 4: 3, 16: 3, 32: 1})


def peers(model: Model, triton_environment: Path, library: Path | None) -> dict[str, Peer]:
    llama = environment(model, "llama", llama_cpp_oracle.make_environment)
    vllm_python = environment(model, "vllm", vllm_oracle.make_environment)
    llama_servers = {name: partial(llama_cpp, model, name, llama, ROWS, THREADS) for name in ("gguf4", "gguf16")}

    def ours(precision: str) -> dict[str, Peer]:
        bundle = model.bundle(precision)
        start_cpp = partial(triton, bundle, triton_environment, ROWS, library)
        cpp = {f"triton C++ {precision}": Peer(start_cpp, "triton")} if library is not None else {}
        return {
            f"serve {precision}": Peer(partial(served, bundle, ROWS)),
            f"{ALONE} {precision}": Peer(partial(served, bundle, 1), turns={1: 3, 16: 1}),
            f"triton {precision}": Peer(partial(triton, bundle, triton_environment, ROWS), "triton"),
            **cpp,
        }

    return {
        **ours("int4"),
        "vLLM bf16": Peer(partial(vllm, model, vllm_python, ROWS, THREADS)),
        "llama.cpp Q4_0": Peer(llama_servers["gguf4"]),
        "serve int4, exact inputs": Peer(partial(served, model.bundle("int4-exact"), ROWS)),
        **ours("fp32"),
        "llama.cpp bf16": Peer(llama_servers["gguf16"]),
    }


def environment(model: Model, name: str, make: Callable[[Path], Path]) -> Path:
    """The Python of a peer's environment."""
    return make(model.work / "envs" / name)


def measure(peer: Peer, new_tokens: int) -> dict[str, Any]:
    """Medians of a server's turns at each number of clients, and of conversations' first tokens."""
    started, load, others = time.monotonic(), psutil.getloadavg()[0], OthersLoad()
    rows = []
    with peer.start() as url:
        clients = Clients(url, peer.api, new_tokens)
        clients.load(2, 1)  # warm-up
        clients.two_turns()
        starting = time.monotonic() - started
        for count, turns in peer.turns.items():
            requests = max(1, 4 // count)  # few clients ask oftener
            each = [clients.load(count, requests).row() for _ in range(turns)]
            middle = {name: round(median(row[name] for row in each), 2) for name in each[0]}
            rows.append(
                {
                    "clients": count,
                    "requests_per_client": requests,
                    **middle,
                    "tokens_per_s_all": [r["tokens_per_s"] for r in each],
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        asked = [clients.two_turns() for _ in range(CONVERSATIONS)]
        others_cores = others.cores()  # while the server's processes, some of which nobody waits for, are there
    first, second = (round(1000 * median(turn[i].arrivals[0] for turn in asked), 1) for i in (0, 1))
    return {
        "load_average_before": round(load, 2),
        "others_cores": others_cores,
        "seconds": round(time.monotonic() - started),
        "seconds_to_start_and_warm_up": round(starting),
        "rows": rows,
        "prompt_tokens": [turn.usage["prompt_tokens"] for turn in asked[0]],
        "first_turn_ms": first,
        "second_turn_ms": second,
    }


def aims(results: dict[str, dict[str, Any]]) -> str:
    """Our ratios to the peers at 16 clients, by precision, each with what we aimed at."""

    def at(name: str, clients: int = 16, quantity: str = "tokens_per_s") -> float:
        """A reading, or NaN where it was not taken."""
        rows = results.get(name, {"rows": []})["rows"]
        return next((float(row[quantity]) for row in rows if row["clients"] == clients), float("nan"))

    lines: list[list[str]] = []
    for label, peer in {
        f"tokens/s against {ALONE} (3)": f"{ALONE} {{}}",
        "tokens/s against vLLM in bfloat16 (1)": "vLLM bf16",
        "tokens/s against llama.cpp in Q4_0 (1)": "llama.cpp Q4_0",
        "tokens/s against llama.cpp in bfloat16 (1)": "llama.cpp bf16",
    }.items():
        lines.append([label, *(f"{at(f'serve {p}') / at(peer.format(p)):.2f}" for p in PRECISIONS)])
    slower = [
        at(f"serve {p}", 16, "inter_token_ms_p95") / at(f"serve {p}", 1, "inter_token_ms_p95") for p in PRECISIONS
    ]
    lines.append(
        [
            "between tokens, p95, against a lone client's; for each of 16 (2)",
            *(f"{s:.1f}; {s / 16:.2f}" for s in slower),
        ]
    )
    lines.append(
        ["Triton's tokens/s of `serve`'s (0.95)", *(f"{at(f'triton {p}') / at(f'serve {p}'):.2f}" for p in PRECISIONS)]
    )
    turns = [
        results.get(f"serve {p}", {"first_turn_ms": float("nan"), "second_turn_ms": float("nan")}) for p in PRECISIONS
    ]
    lines.append(
        [
            "first token of a second turn of a first's (0.1)",
            *(f"{t['second_turn_ms'] / t['first_turn_ms']:.2f}" for t in turns),
        ]
    )
    shown = [[cell.replace("nan", "–") for cell in line] for line in lines]
    return _markdown(["`serve` at 16 clients, and the aim", *PRECISIONS], shown)


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model, environments, logs and rows")
    parser.add_argument(
        "--prepare", action="store_true", help="make the model and the environments, and measure nothing"
    )
    parser.add_argument("--triton", type=Path, default=Path(".venv-triton"), help="environment with a tritonserver")
    parser.add_argument("--triton-library", type=Path, help="libtriton_r1v.so: measure the C++ backend, too")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--only", action="append", help="the servers whose name contains this")
    parser.add_argument("--minutes", type=float, default=60, help="after which no further server is begun")
    parser.add_argument("--try", dest="is_try", action="store_true", help="few short answers, and no results")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the servers end, too
    model = Model(arguments.work)
    if arguments.prepare:
        model.prepare()
    found = peers(model, arguments.triton, arguments.triton_library)
    if arguments.prepare:
        return
    chosen = {
        name: peer for name, peer in found.items() if not arguments.only or any(n in name for n in arguments.only)
    }
    if arguments.is_try:
        for name, peer in chosen.items():
            row = measure(Peer(peer.start, peer.api, {1: 1, 2: 1}), 4)
            print(name, json.dumps(row), flush=True)
        return
    results = measure_all(chosen, arguments)
    print(aims(results))
    settings = {"new_tokens": arguments.new_tokens, "rows": ROWS, "threads": THREADS}
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
                saved.write_text(json.dumps(measure(peer, arguments.new_tokens)), encoding="utf-8")
            except Exception:  # the others are measured all the same
                saved.unlink(missing_ok=True)
                print(name, traceback.format_exc(), file=sys.stderr, flush=True)
        if saved.exists():
            results[name] = json.loads(saved.read_text(encoding="utf-8"))
    return results


if __name__ == "__main__":
    main()
