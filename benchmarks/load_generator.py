"""NVIDIA's aiperf, a public load generator, against `serve`: does it work unchanged, and what does it measure?

    PYTHONPATH=. .venv/bin/python benchmarks/load_generator.py BUNDLE --environment /tmp/aiperf --work /tmp/aiperf-runs

Makes aiperf's environment where there is none (outside the lock), starts `serve`, and runs each case below. aiperf
makes prompts and images itself and needs no network: its tokenizer is the bundle's folder. Results:
benchmarks/results/<date>-load-generator.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from environments import environment_of
from measure import machine, write_results
from serving_peers import served

PACKAGE = "aiperf==0.13.0"
IMAGE = ("--image-width-mean", "224", "--image-height-mean", "112", "--image-batch-size", "1")
CHAT = ("--endpoint-type", "chat", "--isl", "60", "--osl", "32", "--extra-inputs", "ignore_eos:true")
CASES = {
    "streamed, with an image": (*CHAT, *IMAGE, "--streaming", "--concurrency", "8", "--request-count", "48"),
    "whole, with an image": (*CHAT, *IMAGE, "--concurrency", "8", "--request-count", "48"),
    "streamed, server's token counts": (
        *(*CHAT, *IMAGE, "--streaming", "--use-server-token-count"),
        *("--concurrency", "8", "--request-count", "48"),
    ),
    "conversations of three turns": (
        *(*CHAT, *IMAGE, "--streaming", "--concurrency", "4"),
        *("--conversation-num", "12", "--conversation-turn-mean", "3", "--conversation-turn-stddev", "0"),
    ),
    "completions, streamed": (
        *("--endpoint-type", "completions", "--isl", "60", "--osl", "32", "--extra-inputs", "ignore_eos:true"),
        *("--streaming", "--concurrency", "8", "--request-count", "48"),
    ),
    "clients who go away": (
        *(*CHAT, *IMAGE, "--streaming", "--concurrency", "8", "--request-count", "48"),
        *("--request-cancellation-rate", "50", "--request-cancellation-delay", "0.1"),
    ),
}
REPORTED = ("request_count", "error_request_count", "output_sequence_length", "time_to_first_token")
REPORTED += ("inter_token_latency", "output_token_throughput")


def make_environment(folder: Path) -> Path:
    """The Python of aiperf's environment, which is made if it is not there."""
    return environment_of(folder, ("install", "-q", PACKAGE))


def run(python: Path, url: str, bundle: Path, options: tuple[str, ...], out: Path) -> dict[str, Any]:
    """What aiperf reports of one case."""
    command = [python.with_name("aiperf"), "profile", "-m", "m", "--url", url, "--tokenizer", bundle.resolve()]
    command += ["--random-seed", "0", "--ui", "none", "--output-artifact-dir", out, *options]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "output.log").open("w", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    report = json.loads((out / "profile_export_aiperf.json").read_text(encoding="utf-8"))
    kept = {name: {"avg": value["avg"], "p99": value.get("p99")} for name in REPORTED if (value := report.get(name))}
    return {"exit_code": code, "options": " ".join(options), "errors": report.get("error_summary"), **kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--environment", type=Path, required=True, help="folder of aiperf's Python environment")
    parser.add_argument("--work", type=Path, required=True, help="folder for aiperf's own files")
    parser.add_argument("--only", help="the cases whose name contains this; writes no results")
    arguments = parser.parse_args()
    python = make_environment(arguments.environment)
    rows = []
    with served(arguments.bundle, max_rows=16) as url:
        for number, (name, options) in enumerate(CASES.items()):
            if not arguments.only or arguments.only in name:
                found = run(python, url, arguments.bundle, options, arguments.work / str(number))
                rows.append({"case": name, **found})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if not arguments.only:
        print(write_results("load-generator", {**machine(("onnxruntime", "uvicorn")), "client": PACKAGE, "rows": rows}))


if __name__ == "__main__":
    main()
