"""The extra `build` of the package: what building, checking and inspecting need, and answering does not."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from r1v_export.errors import CapabilityError
from r1v_export.extras import install_command

MODULES = frozenset(
    {
        *("torch", "onnx", "onnx_ir", "onnxscript", "ml_dtypes", "safetensors"),
        *("huggingface_hub", "jinja2", "matplotlib", "yaml"),
    }
)
"""What the extra installs; pyproject.toml names the distributions."""


def install() -> str:
    """The command that installs the extra."""
    return install_command("build")


def require() -> None:
    """Check that the extra is installed, before work that would be lost without it.

    Raises:
        CapabilityError: it is not.
    """
    module = missing_module()
    if module is not None:
        raise _not_installed(module)


def missing_module() -> str | None:
    """The first of `MODULES` that is not installed; None if all are."""
    return next((module for module in sorted(MODULES) if importlib.util.find_spec(module) is None), None)


@contextmanager
def required() -> Iterator[None]:
    """An import that fails in the block because the extra is not installed says what to install. Also a decorator.

    Raises:
        CapabilityError: instead of the ModuleNotFoundError of one of `MODULES`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in MODULES:
            raise
        raise _not_installed(module) from error


def _not_installed(module: str) -> CapabilityError:
    return CapabilityError(
        "This needs packages for building and checking, which a runtime-only installation does not have.",
        expected=", ".join(sorted(MODULES)),
        found=f"no {module}",
        fix=install(),
    )
