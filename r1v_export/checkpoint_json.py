"""JSON files of a checkpoint, and their copies in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r1v_export.errors import CheckpointError
from r1v_export.files import read_regular_bytes
from r1v_export.quoting import shorten_text
from r1v_export.strict import load_json


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: the file is missing, unreadable, not JSON, or holds something else.
    """
    fix = f"copy {path.name} again from where the checkpoint came from"
    try:
        text = read_regular_bytes(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"The checkpoint has no {path.name}.",
            where=path.parent,
            found=_entries(path.parent),
            fix=f"name a checkpoint's folder, or {fix}",
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read.", where=path, found=error.strerror, fix=f"check its permissions, or {fix}"
        ) from error
    content = load_json(text, CheckpointError, f"{path.name} cannot be used", where=path, fix=fix)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} is not a JSON object.", where=path, expected="{...}", found=type(content).__name__, fix=fix
        )
    return content


def _entries(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return shorten_text(", ".join(names)) if names else "an empty folder"
