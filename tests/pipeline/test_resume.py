"""A real build, killed with SIGKILL at random moments, ends in the same bytes as an undisturbed one.

`R1V_KILLS=20 pytest tests/pipeline/test_resume.py` kills more often than the suite does.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from r1v_export.manifest import MANIFEST

KILLS = int(os.environ.get("R1V_KILLS", "4"))


def build(model: Path, config: Path, out: Path, kill_after_s: float = float("inf")) -> tuple[bool, float]:
    """Build in a child process, killed once it has computed for so many seconds.

    Returns whether it came to its end, and the processor time that it took: the clock on the wall would make a busy
    machine kill at other moments than an idle one.
    """
    command = [sys.executable, "-m", "r1v_export.cli.main", "build", str(model)]
    options = ["--config", str(config), "-o", str(out)]
    child = psutil.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    taken_s = 0.0
    while child.status() != psutil.STATUS_ZOMBIE:
        taken_s = sum(child.cpu_times()[:2])
        if taken_s >= kill_after_s:
            child.kill()
        time.sleep(0.02)
    return child.wait() == 0, taken_s


@pytest.mark.slow
def test_killed_at_random_moments_a_build_ends_in_the_same_bytes(
    tiny_model: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    config = tmp_path / "build.yaml"
    config.write_text("parity: {questions: 1, max_new_tokens: 2}\n")
    finished, whole_s = build(tiny_model, config, tmp_path / "undisturbed")
    assert finished
    expected = tree(tmp_path / "undisturbed")

    rng, out, kills = random.Random(2026), tmp_path / "out", 0
    while kills < KILLS:
        finished, _ = build(tiny_model, config, out, rng.uniform(0, whole_s))
        if finished:  # sooner than the kill: begin anew, to be killed elsewhere
            assert tree(out) == expected
            shutil.rmtree(out)
            continue
        kills += 1
        if (out / MANIFEST).exists():
            assert tree(out).keys() >= expected.keys(), "a manifest means a whole bundle"
    finished, _ = build(tiny_model, config, out)
    assert finished
    assert tree(out) == expected
