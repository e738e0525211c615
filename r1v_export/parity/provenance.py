"""What a report is about and what made it: model, bytes by their hashes, command, date."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pydantic import model_validator

from r1v_export.manifest import FileEntry
from r1v_export.strict import StrictModel


class HashedFiles(StrictModel):
    """Files of one folder, and one hash of all of them."""

    sha256: str
    """Of what `sha256sum` prints of the files, in the order of their names: `sha256sum NAMES | sha256sum`."""
    files: dict[str, FileEntry]

    @classmethod
    def of(cls, files: Mapping[str, FileEntry]) -> HashedFiles:
        """Files by their path inside the folder."""
        ordered = {name: files[name] for name in sorted(files)}
        return cls(sha256=_digest(ordered), files=ordered)

    @model_validator(mode="after")
    def _hash_is_of_the_files(self) -> HashedFiles:
        if self.sha256 != _digest(self.files):
            raise ValueError("the hash is not that of the files")
        return self

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(entry.size for entry in self.files.values())


def _digest(files: Mapping[str, FileEntry]) -> str:
    lines = (f"{entry.sha256}  {name}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Provenance(StrictModel):
    """Which bytes were compared, and by what."""

    model: str
    """As the bundle's manifest names it: of a folder the name alone."""
    revision: str | None
    checkpoint: HashedFiles
    bundle: HashedFiles
    """Graphs, calibration and engine, by their path inside the bundle, hashed when they were compared."""
    altered: tuple[str, ...] = ()
    """Files that are not as the bundle's manifest has them."""
    read_back: str | None = None
    """How the engine's files were computed, where the library that they are for did not: `Target.read_back`."""
    command: str
    """That made the report."""
    device: str
    date: str | None
    """UTC, ISO 8601; None in a bundle, whose bytes do not depend on when it was built, unless SOURCE_DATE_EPOCH is
    set."""
