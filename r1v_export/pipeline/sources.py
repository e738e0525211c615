"""A checkpoint's files in a build: hashed while its stages read them, and recognized meanwhile by what `stat` says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType

from r1v_export.errors import CheckpointError
from r1v_export.files import file_identity
from r1v_export.hashed_reads import ReadHashes, unreadable
from r1v_export.manifest import FileEntry, hash_file
from r1v_export.pipeline.workspace import HashCache
from r1v_export.progress import Progress, size

HASHING = "checkpoint-hash"


class Sources:
    """The files as they were when the build began; hashes of those that `cache` does not know come from a thread.

    Args:
        paths: by name.
        cache: of hashes that are known; what becomes known is added.
        progress: shows the wait for the hashes, as a stage of its own.
    """

    def __init__(self, paths: Mapping[str, Path], cache: HashCache, progress: Progress) -> None:
        self.paths, self._cache, self._progress = paths, cache, progress
        try:
            self._identities = {name: file_identity(path.stat()) for name, path in paths.items()}
        except OSError as error:
            raise unreadable(error) from error
        known = {name: cache.known(path) for name, path in paths.items()}
        self._entries = {name: entry for name, entry in known.items() if entry}
        self._hashes = ReadHashes(path for name, path in paths.items() if name not in self._entries)
        self._waited = False

    def __enter__(self) -> Sources:
        self._hashes.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hashes.__exit__(kind, error, traceback)
        self.remember()

    @property
    def identities(self) -> dict[str, str]:
        """What stands for each file's content, by name, while its hash is not known: as long as `stat` says the same of
        a file, it is taken for unchanged."""
        return {name: f"unhashed {identity}" for name, identity in self._identities.items()}

    def current(self, names: Collection[str]) -> dict[str, str]:
        """SHA-256 of some files, by name, if all of theirs are known by now; else what `identities` has of them."""
        self.remember()
        if all(name in self._entries for name in names):
            return {name: self._entries[name].sha256 for name in names}
        return {name: self.identities[name] for name in names}

    def contents(self, names: Collection[str]) -> dict[str, str]:
        """SHA-256 of some files, by name; waits for all files if one of these is not known.

        Raises:
            CheckpointError: as `hashed`.
        """
        entries = self._entries if all(name in self._entries for name in names) else self.hashed()
        return {name: entries[name].sha256 for name in names}

    @property
    def size_bytes(self) -> dict[str, int]:
        """Of each file, by name."""
        return {name: identity[2] for name, identity in self._identities.items()}

    def remember(self) -> None:
        """Keep the hashes that are known by now."""
        for name, path in self.paths.items():
            found = self._hashes.found.get(path)
            if found and name not in self._entries and found.identity == self._identities[name]:
                self._entries[name] = FileEntry(sha256=found.sha256, size=found.identity[2])
                self._cache.put(path, self._entries[name], found.identity)

    def hashed(self) -> dict[str, FileEntry]:
        """Hash and size of every file, by name, once all are known.

        Raises:
            CheckpointError: a file cannot be read, or is another one than when the build began.
        """
        if not self._waited:
            self._waited = True
            with self._progress.stage(HASHING) as task:
                self._hashes.finish(task.report)
                task.outcome = size(sum(self.size_bytes.values()))
        self.remember()
        self._refuse([name for name in self.paths if name not in self._entries])
        return dict(self._entries)

    def require_unchanged(self) -> None:
        """Require the content of every file to be what was hashed.

        Raises:
            CheckpointError: that of one is not.
        """
        entries = self.hashed()
        self._refuse([name for name, path in self.paths.items() if not self._has_content(name, path, entries[name])])

    def _has_content(self, name: str, path: Path, entry: FileEntry) -> bool:
        if not path.is_file():
            return False
        return file_identity(path.stat()) == self._identities[name] or hash_file(path) == entry

    def _refuse(self, changed: list[str]) -> None:
        if changed:
            raise CheckpointError(
                "The checkpoint changed while it was being built.",
                where=self.paths[changed[0]].parent,
                found=f"another content of {', '.join(sorted(changed))}",
                fix="run the same command again; what is built from the old files is made again",
            )
