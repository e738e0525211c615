"""An environment with what a runtime-only installation has, made of links into this one: no index, no torch."""

from __future__ import annotations

import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import r1v_export

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(r1v_export.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def make_environment(folder: Path, requirements: Iterable[str], without: Iterable[str]) -> Path:
    """A virtual environment with the package, some distributions, and what those require in turn; its interpreter.

    Args:
        requirements: as in pyproject.toml; installed where the tests run.
        without: requirements that are omitted, also where a distribution names them.
    """
    venv.create(folder, symlinks=True)
    variables = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", variables))
    (site / PACKAGE.name).symlink_to(PACKAGE)
    omitted = {canonicalize_name(Requirement(text).name) for text in without}
    for distribution in _closure(requirements, omitted):
        for file in distribution.files or ():
            if ".." not in file.parts:
                link = site / file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(file.locate())).absolute())
    return folder / "bin" / "python"


def _closure(requirements: Iterable[str], omitted: Iterable[str]) -> list[metadata.Distribution]:
    waiting, found = [*requirements], dict[str, metadata.Distribution]()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in found and name not in omitted:
            found[name] = metadata.distribution(name)
            waiting += found[name].requires or []
    return [*found.values()]
