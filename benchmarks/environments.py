"""Python environments of the peers that are measured, outside of the project's own."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path


def environment_of(folder: Path, *steps: Sequence[str]) -> Path:
    """The Python of an environment, which is made if it is not there whole.

    Args:
        steps: arguments of pip, one call after the other.
    """
    python, whole = folder / "bin" / "python", folder / ".installed"
    if not whole.exists():
        venv.create(folder, with_pip=True)
        for step in steps:
            subprocess.run([python, "-m", "pip", *step], check=True)
        whole.touch()
    return python
