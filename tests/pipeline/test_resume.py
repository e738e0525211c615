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

from r1v_export.manifest import MANIFEST

KILLS = int(os.environ.get("R1V_KILLS", "4"))


def start(model: Path, config: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "r1v_export.cli.main",
        "build",
        str(model),
        "--config",
        str(config),
        "-o",
        str(out),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_killed_at_random_moments_a_build_ends_in_the_same_bytes(
    tiny_model: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    config = tmp_path / "build.yaml"
    config.write_text("parity: {questions: 1, max_new_tokens: 2}\n")
    began = time.monotonic()
    assert start(tiny_model, config, tmp_path / "undisturbed").wait() == 0
    whole_s = time.monotonic() - began
    expected = tree(tmp_path / "undisturbed")

    rng, out, kills = random.Random(2026), tmp_path / "out", 0
    while kills < KILLS:
        child = start(tiny_model, config, out)
        try:
            finished = child.wait(timeout=rng.uniform(0, whole_s)) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            kills += 1
            finished = False
        if finished:  # sooner than the kill: begin anew, to be killed elsewhere
            assert tree(out) == expected
            shutil.rmtree(out)
        elif (out / MANIFEST).exists():
            assert tree(out).keys() >= expected.keys(), "a manifest means a whole bundle"
    assert start(tiny_model, config, out).wait() == 0
    assert tree(out) == expected
