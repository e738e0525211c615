from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
