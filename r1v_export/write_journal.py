"""What a stage has written so far of its files, so that the same stage goes on there after it was killed.

    {"key": of what decides the bytes, "files": {path in the folder: [bytes, SHA-256 of these bytes, identity or null]}}

The bytes of a finished file are synced before they are noted, and its identity (inode, size, modification time)
vouches for them. Those of a file that is not finished are read again and compared with their hash: what a power cut
took is written anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1v_export.errors import UsageError
from r1v_export.files import file_identity, open_regular, read_regular_text
from r1v_export.strict import load_json

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class WrittenPart:
    """The beginning of a file, or all of it.

    Attributes:
        digest: SHA-256 that has taken in these bytes; None of a finished file.
        sha256: of a finished file.
    """

    size_bytes: int
    digest: Any
    sha256: str | None


class WriteJournal:
    """The journal of one folder.

    Args:
        path: of the journal; not in the folder.
        folder: what the files are written below.
        key: of what decides their bytes; what was written for another one is not taken up.
    """

    def __init__(self, path: Path, folder: Path, key: str) -> None:
        self.path, self.folder, self.key = path, folder, key
        self._files = _read(path, key)
        self._noting = threading.Lock()  # files that are written side by side have a thread each

    def prepare(self) -> None:
        """Remove whatever lies in the folder and is not in the journal; the folder is there afterwards."""
        if not self._files:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif self._name(path) not in self._files:
                path.unlink()

    def covers(self, path: Path) -> bool:
        """Whether a file lies in the folder."""
        return path.is_relative_to(self.folder)

    def find(self, path: Path, ends: Collection[int]) -> WrittenPart | None:
        """What is written of a file and sound.

        Args:
            ends: where a part may end.
        """
        size_bytes, sha256, identity = self._files.get(self._name(path), (0, "", None))
        if size_bytes not in ends or path.is_symlink() or not path.is_file():
            return None
        if identity is not None:
            return WrittenPart(size_bytes, None, sha256) if identity == [*file_identity(path.stat())] else None
        digest = _hash_beginning(path, size_bytes)
        return WrittenPart(size_bytes, digest, None) if digest.hexdigest() == sha256 else None

    def note(self, path: Path, size_bytes: int, sha256: str, *, finished: bool) -> None:
        """Note that so many bytes of a file are written; of a finished one that all are, and synced."""
        entry = [size_bytes, sha256, [*file_identity(path.stat())] if finished else None]
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        with self._noting:
            self._files[self._name(path)] = entry
            unfinished.write_text(json.dumps({"key": self.key, "files": self._files}), encoding="utf-8")
            unfinished.replace(self.path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _read(path: Path, key: str) -> dict[str, list[Any]]:
    """The files of a journal; none where it cannot be read or is of another key: all is written anew."""
    try:
        found = load_json(read_regular_text(path), UsageError, "The journal of a stage cannot be read", where=path)
    except (OSError, ValueError, UsageError):
        return {}
    match found:
        case {"key": found_key, "files": dict() as files} if found_key == key and all(map(_is_entry, files.values())):
            return files
    return {}


def _is_entry(entry: object) -> bool:
    match entry:
        case [int(), str(), None | [int(), int(), int(), int()]]:
            return True
    return False


def _hash_beginning(path: Path, size_bytes: int) -> Any:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while size_bytes and (piece := file.read(min(_PIECE_BYTES, size_bytes))):
            digest.update(piece)
            size_bytes -= len(piece)
    return digest
