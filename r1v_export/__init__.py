"""Skywork-R1V-class vision-language models, from checkpoint to proven production engines.

The public face: everything in `__all__`, and nothing else of the package. A name is imported when it is first used, so
that importing the package is instant. docs/api.md describes it.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from r1v_export.version import VERSION

if TYPE_CHECKING:
    from r1v_export.api import build, check, open_bundle, open_runner, verify
    from r1v_export.bundle import Bundle
    from r1v_export.config import BuildConfig
    from r1v_export.errors import (
        BackendError,
        BundleError,
        CapabilityError,
        CheckpointError,
        EngineMismatchError,
        GraphError,
        InputError,
        ParityError,
        QueueFullError,
        R1VError,
        UsageError,
    )
    from r1v_export.generation import Sampling
    from r1v_export.manifest import Manifest
    from r1v_export.parity.schema import ParityReport
    from r1v_export.processing.load_image import load_image
    from r1v_export.processing.prompt import Turn
    from r1v_export.runner.answer import Answer, TokenEvent
    from r1v_export.runner.base import BaseRunner
    from r1v_export.runner.prompt_encoder import Request

__version__ = VERSION

__all__ = [
    "Answer",
    "BackendError",
    "BaseRunner",
    "BuildConfig",
    "Bundle",
    "BundleError",
    "CapabilityError",
    "CheckpointError",
    "EngineMismatchError",
    "GraphError",
    "InputError",
    "Manifest",
    "ParityError",
    "ParityReport",
    "QueueFullError",
    "R1VError",
    "Request",
    "Sampling",
    "TokenEvent",
    "Turn",
    "UsageError",
    "__version__",
    "build",
    "check",
    "load_image",
    "open_bundle",
    "open_runner",
    "verify",
]

_MODULES = {
    "r1v_export.api": ("build", "check", "open_bundle", "open_runner", "verify"),
    "r1v_export.bundle": ("Bundle",),
    "r1v_export.config": ("BuildConfig",),
    "r1v_export.errors": tuple(name for name in __all__ if name.endswith("Error")),
    "r1v_export.generation": ("Sampling",),
    "r1v_export.manifest": ("Manifest",),
    "r1v_export.parity.schema": ("ParityReport",),
    "r1v_export.processing.load_image": ("load_image",),
    "r1v_export.processing.prompt": ("Turn",),
    "r1v_export.runner.answer": ("Answer", "TokenEvent"),
    "r1v_export.runner.base": ("BaseRunner",),
    "r1v_export.runner.prompt_encoder": ("Request",),
}
"""Where each name of the public face is defined."""

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = value = getattr(importlib.import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
