"""TensorRT-LLM itself, where it is installed: imported when it is needed, in a version that fits."""

from __future__ import annotations

import importlib
import re
from typing import Any

from r1v_export.count import Count
from r1v_export.errors import CapabilityError
from r1v_export.targets.tensorrt_llm.doctor import INSTALL

ENGINES = ((1, 0), (1, 3))
"""Versions that build and run engines, and that the checkpoints are written for: below the last."""

ENGINES_TEXT = "TensorRT-LLM 1.0, 1.1 or 1.2 (TensorRT 10.13, CUDA 13); later releases have no engines"

LLM_API = ((1, 2), (2, 0))
"""Versions whose LLM API reads unified checkpoints."""

LLM_API_TEXT = "TensorRT-LLM 1.2 or later"

Range = tuple[tuple[int, int], tuple[int, int]]


def version_number(text: str) -> tuple[int, ...] | None:
    """`1.2.0rc6` -> (1, 2, 0); None where that is no version."""
    parts = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text.strip())
    return tuple(int(part) for part in parts.groups(default="0")) if parts else None


def within(version: tuple[int, ...] | None, supported: Range) -> bool:
    """Whether a version is known and in the half-open range."""
    return version is not None and supported[0] <= version[:2] < supported[1]


def load(supported: Range, expected: str) -> Any:
    """The module `tensorrt_llm`. Importing it registers its plugins with TensorRT.

    Args:
        expected: the supported versions in words.

    Raises:
        CapabilityError: it is not installed, does not load here, or is of another version.
    """
    try:
        library = importlib.import_module("tensorrt_llm")
    except ModuleNotFoundError as error:
        raise CapabilityError("TensorRT-LLM is not installed.", expected=expected, found=error, fix=INSTALL) from error
    except (ImportError, OSError, RuntimeError) as error:  # Without a driver its libraries do not load.
        found = str(error).splitlines()[0] if str(error) else repr(error)
        raise CapabilityError("TensorRT-LLM cannot be imported.", expected="a CUDA GPU", found=found) from error
    if not within(version_number(library.__version__), supported):
        raise CapabilityError(
            "This version of TensorRT-LLM cannot be used.", expected=expected, found=library.__version__, fix=INSTALL
        )
    return library


def require_gpus(count: int) -> None:
    """Check that there are enough CUDA GPUs.

    Raises:
        CapabilityError: there are fewer.
    """
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < count:
        raise CapabilityError(
            "There are not enough GPUs.",
            where="tensorrt-llm",
            expected=f"{Count(count, 'CUDA GPU')}",
            found=found,
            fix="run it on the machine that the engine was built for",
        )
