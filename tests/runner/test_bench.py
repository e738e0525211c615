from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from r1v_export.errors import UsageError
from r1v_export.processing.load_image import load_image
from r1v_export.progress import Progress
from r1v_export.runner.bench import measure
from r1v_export.runner.open_runner import open_runner

CHART = Path(__file__).parents[2] / "examples" / "images" / "05-chart.png"

CODE = """
from r1v_export.runner.bench import peak_memory_bytes
held = b"x" * 200_000_000
print(peak_memory_bytes())
"""


def test_peak_memory_is_the_process_s_own_and_not_that_of_its_parent() -> None:
    held = b"x" * 1_000_000_000
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert 200_000_000 < int(done.stdout) < len(held)


def test_answers_that_the_context_would_cut_off_are_refused_before_any_is_begun(nano_bundle: Path) -> None:
    runner = open_runner(nano_bundle)
    with pytest.raises(UsageError, match="does not fit into the model's context") as caught:
        measure(
            runner, load_image(CHART, runner.image_policy), "What do you see?", 99_999_999, 1, Progress(1, quiet=True)
        )
    most = int(str(caught.value.expected).split(":")[0].removeprefix("at most "))
    assert caught.value.fix == f"pass --tokens {most}, or fewer"
    prompt = runner.ask("What do you see?", CHART).prompt_tokens
    assert most + prompt == runner.max_positions
