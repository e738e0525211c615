"""What is to be measured on a GPU, as one command that resumes: on a machine with torch (CUDA), triton, nvcc, onnx and
transformers, without a network.

What that machine lacks is carried to it in parts (carry.py); then, in calls of at most ten minutes each:

    PYTHONPATH=/tmp/r1v-carried/site:. python3 benchmarks/gpu/campaign.py --out /tmp/r1v-campaign

Each step (steps.py) runs in a process of its own with a time limit, and its result or its error is in
`OUT/<step>.json` as soon as it ends; run again, the command goes on with the steps that have none, and takes none that
may not end within `--limit-s`. At last everything is in benchmarks/results/<date>-<gpu>.json, as it is.

    PYTHONPATH=. .venv/bin/python benchmarks/gpu/campaign.py --out /tmp/dry-run --device cpu --tiny --limit-s 3600

does the same on small models on a CPU. Its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import STEPS, Context
from benchmarks.measure import RESULTS, write_results

STEP_S = 420
"""The most that a step may take."""
CALL_S = 570
"""Of a call of ten minutes."""


def run_step(name: str, arguments: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """A step in a process of its own: its result, or why there is none, and how long it took."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        result = Path(work, "result.json")
        command = [sys.executable, __file__, "--out", arguments.out, "--device", arguments.device, "--step", name]
        command += ["--work", work, *(["--tiny"] if arguments.tiny else [])]
        try:
            done = subprocess.run(
                command, env=_environment(), capture_output=True, text=True, timeout=limit_s, check=False
            )
            error = None if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr[-3000:]}"
        except subprocess.TimeoutExpired:
            error = f"stopped after {limit_s:.0f} s"
        found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    return {**found, **({"error": error} if error else {}), "step_s": round(time.monotonic() - started, 1)}


def _environment() -> dict[str, str]:
    """This process's, with the repository where Python looks for modules."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def run_in_this_process(name: str, arguments: argparse.Namespace) -> None:
    """What `run_step` starts."""
    rates_file = arguments.out / "rates.json"
    rates = json.loads(rates_file.read_text(encoding="utf-8")).get("rates", {}) if rates_file.exists() else {}
    found = STEPS[name](Context(arguments.device, arguments.tiny, arguments.work, rates))
    (arguments.work / "result.json").write_text(json.dumps(found), encoding="utf-8")


def collect(out: Path) -> dict[str, Any]:
    """Results of all steps so far, in order."""
    files = {name: out / f"{name}.json" for name in STEPS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.exists()}


def gpu_name(found: dict[str, Any], device: str) -> str:
    """For a file's name: `nvidia-h100-80gb-hbm3`."""
    name = found.get("rates", {}).get("machine", {}).get("gpu", f"{device}-dry-run")
    return name.lower().replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where results are, and an unfinished campaign goes on")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models: a dry run")
    parser.add_argument("--steps", nargs="+", choices=tuple(STEPS), default=tuple(STEPS))
    parser.add_argument("--limit-s", type=float, default=CALL_S, help="of this call; what may take longer waits")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--step", choices=tuple(STEPS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_in_this_process(arguments.step, arguments)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + arguments.limit_s
    for name in arguments.steps:
        path, left_s = arguments.out / f"{name}.json", ends - time.monotonic()
        if path.exists():
            continue
        if left_s < STEP_S and arguments.limit_s > left_s + 1:
            print(f"{name}: waits for the next call", flush=True)
            continue
        found = run_step(name, arguments, min(STEP_S, left_s))
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {found.get('error', 'done')[-200:]}, {found['step_s']} s", flush=True)
    found = collect(arguments.out)
    if set(found) >= set(arguments.steps):
        print(write_results(gpu_name(found, arguments.device), found, arguments.results))


if __name__ == "__main__":
    main()
