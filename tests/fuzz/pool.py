"""Runs inputs in a worker process: a hang, an abort or too much memory is a finding about one input."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT_S = 10
MAX_BYTES = 2_000_000_000
_START_S = 120


class Worker:
    """One process, started anew after each input that it did not survive."""

    def __init__(self, model: Path, bundle: Path) -> None:
        self.arguments = [sys.executable, "-m", "tests.fuzz.worker", str(model), str(bundle)]
        self._start()

    def _start(self) -> None:
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )
        self.weights: dict[str, int] = self._answer(_START_S) or {}
        assert self.weights, "the worker does not start"

    def _answer(self, timeout_s: float) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline() if ready else ""
        return json.loads(line) if line else None

    def open(self, job: dict[str, Any]) -> dict[str, Any]:
        """What became of an input: `opened` and `refused` are right, everything else is a defect."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self._answer(TIMEOUT_S)
        if answer is None:
            code = self.process.poll()
            outcome = f"no answer in {TIMEOUT_S} s" if code is None else f"process ended with {code}"
            self.close()
            self._start()
            return {"outcome": outcome, "detail": ""}
        if answer["peak_bytes"] > MAX_BYTES:
            self.close()
            self._start()
            return {"outcome": f"took {answer['peak_bytes']} bytes", "detail": ""}
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
