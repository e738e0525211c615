"""An engine in a process of its own, which keeps its model and waits for jobs: engines can take turns, and each one's
memory is its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class EngineProcess:
    """A script that takes jobs from stdin and answers them on stdout, each a JSON object on a line."""

    name: str
    process: subprocess.Popen[str] | None = field(default=None, init=False)
    log: Path | None = field(default=None, init=False)

    def launch(
        self, command: Sequence[str | Path], variables: Mapping[str, str], log: Path | None = None
    ) -> dict[str, Any]:
        """Start it; what it says once it is ready.

        Args:
            variables: of its environment, in addition to this process's.
            log: takes its stderr; this process's own if None.
        """
        self.log = log
        with ExitStack() as stack:
            self.process = subprocess.Popen(
                list(map(str, command)),
                env=os.environ | variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if log is None else stack.enter_context(log.open("w", encoding="utf-8")),
                text=True,
            )
        return self._answer()

    def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a job."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print, too
                answer: dict[str, Any] = json.loads(line)
                return answer
        said = "see its error above" if self.log is None else self.log.read_text(errors="replace")[-3000:]
        raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}: {said}")
