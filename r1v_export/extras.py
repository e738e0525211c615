"""How a user adds an extra of this package to the environment that runs: it is in no package index."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_DISTRIBUTION = "r1v-export"
_ROOT = Path(__file__).resolve().parents[1]


def install_command(extra: str) -> str:
    """The command that installs an extra from where this package was installed from: a clone, a wheel, a repository."""
    origin = _origin()
    url, editable = origin.get("url", ""), origin.get("dir_info", {}).get("editable", False)
    path = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else _ROOT
    if "vcs_info" in origin:
        return f'pip install "{_DISTRIBUTION}[{extra}] @ {origin["vcs_info"]["vcs"]}+{url}"'
    if path.suffix == ".whl" and path.is_file():
        return f'pip install "{path}[{extra}]"'
    if (path / "pyproject.toml").is_file():
        return f'pip install {"-e " if editable else ""}"{path}[{extra}]"'
    return f'pip install "r1v_export-VERSION-py3-none-any.whl[{extra}]", with the path of the wheel or of a clone'


def _origin() -> dict[str, Any]:
    """What pip recorded about the installation (PEP 610); empty where it is no installation."""
    try:
        recorded = distribution(_DISTRIBUTION).read_text("direct_url.json")
        found = json.loads(recorded or "{}")
    except (PackageNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
