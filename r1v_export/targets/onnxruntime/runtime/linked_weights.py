"""Weights behind links, as hub caches keep them: ONNX Runtime reads none that lie outside the folder it is given."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from r1v_export.errors import BundleError
from r1v_export.files import require_regular
from r1v_export.targets.onnxruntime.graph_message import Model

_LOCATION = "location"


def follow_links(model: Model, root: Path) -> Path:
    """Let the weights of `model` be found where the links below `root` lead to; nothing is copied.

    Args:
        model: its locations are rewritten if there are links.
        root: what they are relative to.

    Returns:
        What they are relative to now: `root`, or the folder that holds all the linked files.

    Raises:
        BundleError: a location leads out of `root` other than by a link.
        OSError: a file is missing, or no regular file.
    """
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == _LOCATION]
    real_root = root.resolve()
    files = {location: _real_file(root, location) for location in sorted({entry.value for entry in entries})}
    if all(file == real_root / location for location, file in files.items()):
        return root
    folder = Path(os.path.commonpath([file.parent for file in files.values()]))
    for entry in entries:
        entry.value = files[entry.value].relative_to(folder).as_posix()
    return folder


def _real_file(root: Path, location: str) -> Path:
    parts = PurePosixPath(location.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "\0" in location:
        raise BundleError(
            "A graph's weights lie outside its bundle.",
            where=root,
            expected="a path inside the bundle",
            found=repr(location)[:200],
            fix="fetch the bundle again, or build it again",
        )
    file = (root / location).resolve(strict=True)
    require_regular(file)
    return file
