"""Which packages are installed here, without importing them."""

from __future__ import annotations

import importlib.util
from importlib import metadata


def version_of(module: str, *distributions: str) -> str | None:
    """The version of a module by the distributions that may bring it; None if it is not installed.

    Args:
        distributions: tried in this order; a module that none of them brings is "unknown".
    """
    if importlib.util.find_spec(module) is None:
        return None
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
