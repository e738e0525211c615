"""What a user is asked to install, by where the package came from, as pip records it (PEP 610)."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1v_export import extras

REPOSITORY = "https://example.org/r1v-export"


def command_for(recorded: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch) -> str:
    text = None if recorded is None else json.dumps(recorded)
    installed = SimpleNamespace(read_text=lambda name: text if name == "direct_url.json" else None)
    monkeypatch.setattr(extras, "distribution", lambda name: installed)
    return extras.install_command("serve")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "my clone"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    return folder


def test_a_clone_is_named_by_its_folder(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: dict[str, Any] = {"url": clone.as_uri(), "dir_info": {}}
    assert command_for(recorded, monkeypatch) == f'pip install "{clone}[serve]"'
    recorded["dir_info"] = {"editable": True}
    assert command_for(recorded, monkeypatch) == f'pip install -e "{clone}[serve]"'


def test_a_repository_is_named_by_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = {"url": REPOSITORY, "vcs_info": {"vcs": "git", "commit_id": "0"}}
    assert command_for(recorded, monkeypatch) == f'pip install "r1v-export[serve] @ git+{REPOSITORY}"'


def test_what_is_no_longer_there_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "r1v_export-0.1.0-py3-none-any.whl"
    expected = 'pip install "r1v_export-VERSION-py3-none-any.whl[serve]", with the path of the wheel or of a clone'
    assert command_for({"url": gone.as_uri(), "archive_info": {}}, monkeypatch) == expected


def test_sources_that_run_without_being_installed_are_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(extras.__file__).parents[1]
    assert command_for(None, monkeypatch) == f'pip install "{root}[serve]"'

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", missing)
    assert extras.install_command("serve") == f'pip install "{root}[serve]"'
