"""The output folder of a build: one build at a time, files that appear whole or not at all, a memory of what is done.

    OUT/.work/lock            held while a build runs; freed by the system when the process dies, however it dies
    OUT/.work/hashes.json     path, device, inode, size, mtime -> SHA-256: a resumed build reads nothing twice for it
    OUT/.work/done/STAGE.json fingerprint and files of a finished stage, written after its files are in place
    OUT/.work/STAGE/          what a running stage has written so far
    OUT/.work/STAGE.journal.json which of it is sound, for the same stage after a kill; the rest is never read again
    OUT/.work/STAGE.kept/     what a stage keeps itself for another try, in a form of its own, until it is recorded
    OUT/manifest.json         written last: its presence says that the bundle is whole

A stage writes below `.work/STAGE/`; its files are hashed, synced and renamed into OUT; then its record is written.
Killed before the record, the stage runs again: it goes on with files that are in its journal, and replaces what else it
left; killed after, it is done.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from r1v_export.errors import UsageError
from r1v_export.files import (
    FileIdentity,
    file_identity,
    read_regular_bytes,
    read_regular_text,
    require_writable,
    sync_file,
    sync_folder,
    write_atomically,
)
from r1v_export.hashed_files import WrittenHashes
from r1v_export.manifest import (
    LOCAL_REPORTS,
    MANIFEST,
    WORK_FOLDER,
    FileEntry,
    Manifest,
    StageEntry,
    hash_file,
    read_manifest,
    to_json,
)
from r1v_export.strict import load_json
from r1v_export.write_journal import WriteJournal

CHOOSE_ANOTHER = "choose another one with -o FOLDER"
"""What to do about an output folder that cannot be used."""

_STAT_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own are (stat(2))


def kept_folder(out: Path, stage: str) -> Path:
    """Where a stage of the build in `out` keeps what it needs for another try, until it is recorded."""
    return out / WORK_FOLDER / f"{stage}.kept"


def unfinished_bytes(out: Path, stages: Iterable[str]) -> int:
    """Disk that killed runs of these stages hold: their next run goes on with it, or removes it. A file that has a name
    elsewhere, too, is no more disk for them."""
    folders = [folder for stage in stages for folder in (out / WORK_FOLDER / stage, kept_folder(out, stage))]
    found = [path.stat() for folder in folders for path in folder.rglob("*") if path.is_file()]
    names = Counter(file.st_ino for file in found)
    own = {file.st_ino: file.st_blocks for file in found if file.st_nlink == names[file.st_ino]}
    return sum(own.values()) * _STAT_BLOCK_BYTES


class Workspace:
    """One output folder, locked. Made by `open_workspace`."""

    def __init__(self, out: Path) -> None:
        self.out, self.work = out, out / WORK_FOLDER
        self.hashes = HashCache(self.work / "hashes.json")
        self.manifest = read_manifest(out) if (out / MANIFEST).is_file() else None
        self._done = dict(self.manifest.stages) if self.manifest else dict(self._read_records())

    @property
    def has_stages(self) -> bool:
        """Whether anything was ever finished here."""
        return bool(self._done)

    def remembers(self, stage: str) -> bool:
        """Whether the stage was ever finished here."""
        return stage in self._done

    def done(self, stage: str, fingerprint: str) -> StageEntry | None:
        """The stage's files when it finished with this fingerprint and they are as it left them, else None."""
        entry = self._done.get(stage)
        if entry is None or entry.fingerprint != fingerprint:
            return None
        paths = {path: self.out / path for path in entry.files}
        if any(path.is_symlink() or not path.is_file() for path in paths.values()):
            return None
        found = {name: self.hashes.get(path) for name, path in paths.items()}
        return entry if found == entry.files else None

    def begin_changes(self) -> None:
        """From here on the folder is no whole bundle: remember its finished stages, drop the manifest."""
        if self.manifest is None:
            return
        for stage, entry in self._done.items():
            self._write_record(stage, entry)
        (self.out / MANIFEST).unlink()
        sync_folder(self.out)
        self.manifest = None

    def begin(self, stage: str, key: str, *, resume: bool = True) -> WriteJournal:
        """The journal of a stage's folder, for the stage to write into in the bundle's layout.

        Args:
            key: of what decides the stage's bytes: files, and beginnings of files, that a killed run with this key
                wrote are still there.
            resume: False begins anew all the same.
        """
        journal = self._journal(stage)
        if not resume:
            journal.unlink(missing_ok=True)
            shutil.rmtree(kept_folder(self.out, stage), ignore_errors=True)
        opened = WriteJournal(journal, self.work / stage, key)
        opened.prepare()
        return opened

    def commit(self, stage: str, fingerprint: str, files: Mapping[str, FileEntry] | None = None) -> StageEntry:
        """Move what the stage wrote into the bundle and remember it as done.

        Args:
            files: what `stage_files` found in its folder, if it did already.
        """
        folder = self.work / stage
        files = dict(stage_files(folder) if files is None else files)
        if before := self._done.get(stage):
            self._remove(before.files.keys() - files.keys())
        for name, file in files.items():
            target = self.out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(target)
            self.hashes.put(target, file, file_identity(target.stat()))
        for parent in {(self.out / name).parent for name in files}:
            sync_folder(parent)
        self.hashes.save()
        entry = StageEntry(fingerprint=fingerprint, files=files)
        self._done[stage] = entry
        self._write_record(stage, entry)
        shutil.rmtree(folder)
        self._journal(stage).unlink(missing_ok=True)
        shutil.rmtree(kept_folder(self.out, stage), ignore_errors=True)
        return entry

    def keep_report(self, stage: str) -> Path | None:
        """Move the report of a stage that failed to where it can be read, outside the product."""
        report, kept = self.work / stage / "report", self.out / LOCAL_REPORTS
        if not report.is_dir():
            return None
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        report.replace(kept)
        return kept

    def finish(self, manifest: Manifest) -> None:
        """Drop the files of stages that are no more, and old local reports; write the manifest; clear the workspace."""
        for stage in self._done.keys() - manifest.stages.keys():
            self._remove(self._done[stage].files.keys() - manifest.files.keys())
        shutil.rmtree(self.out / LOCAL_REPORTS, ignore_errors=True)
        _remove_empty_folders(self.out)
        _write_text(self.out / MANIFEST, manifest.to_json())
        self.clear()

    def clear(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.work)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.out / name).unlink(missing_ok=True)

    def _record_path(self, stage: str) -> Path:
        return self.work / "done" / f"{stage}.json"

    def _journal(self, stage: str) -> Path:
        return self.work / f"{stage}.journal.json"

    def _write_record(self, stage: str, entry: StageEntry) -> None:
        _write_text(self._record_path(stage), to_json(entry.model_dump(mode="json")))

    def _read_records(self) -> Iterator[tuple[str, StageEntry]]:
        for path in sorted((self.work / "done").glob("*.json")):
            try:
                yield path.stem, StageEntry.model_validate_json(read_regular_bytes(path))
            except ValidationError:
                continue  # of another version of this program: the stage runs again


def stage_files(folder: Path, written: WrittenHashes | None = None) -> dict[str, FileEntry]:
    """The files that a stage wrote below a folder, synced, by their path in it.

    Args:
        written: hashes of files that need not be read for them.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        sync_file(path)
        sha256 = written.sha256(path) if written else None
        file = FileEntry(sha256=sha256, size=path.stat().st_size) if sha256 else hash_file(path)
        files[path.relative_to(folder).as_posix()] = file
    return files


class HashCache:
    """SHA-256 by path, for files that `stat` says the same of as then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            known = load_json(read_regular_text(path), UsageError, "The hashes of a build cannot be read", where=path)
        except (OSError, ValueError, UsageError):
            known = None  # hashed again
        self._known: dict[str, list[int | str]] = known if isinstance(known, dict) else {}

    def known(self, path: Path) -> FileEntry | None:
        """Hash of a file where it is known.

        Raises:
            OSError: there is no such file.
        """
        identity = file_identity(path.stat())
        match self._known.get(str(path.absolute())):
            case [*found, str(sha256)] if found == list(identity):
                return FileEntry(sha256=sha256, size=identity[2])
        return None

    def get(self, path: Path) -> FileEntry:
        """Hash of a file, computed when it is not known."""
        identity = file_identity(path.stat())
        entry = self.known(path)
        if entry is None:
            entry = hash_file(path)
            self.put(path, entry, identity)
        return entry

    def put(self, path: Path, entry: FileEntry, identity: FileIdentity) -> None:
        """Remember a file's hash for as long as it has this identity."""
        self._known[str(path.absolute())] = [*identity, entry.sha256]

    def save(self) -> None:
        """Write the cache to its file."""
        _write_text(self.path, json.dumps(self._known))


@contextmanager
def open_workspace(out: Path) -> Iterator[Workspace]:
    """Lock an output folder for one build.

    Raises:
        UsageError: another build is at work in it, or it holds something that is no bundle.
    """
    if out.exists() and not out.is_dir():
        raise UsageError("The output is not a folder.", where=out, fix="choose another one with -o FOLDER")
    is_ours = (out / MANIFEST).is_file() or (out / WORK_FOLDER).is_dir()
    if out.is_dir() and not is_ours and any(out.iterdir()):
        raise UsageError(
            "The output folder contains other files.",
            where=out,
            expected="an empty folder, a bundle or an unfinished build",
            fix=CHOOSE_ANOTHER,
        )
    require_writable(out, CHOOSE_ANOTHER)
    with _lock(out):
        yield Workspace(out)


def _lock(out: Path) -> TextIO:
    """Take the lock, which dies with the process; the file's text, a process id, is for the message only."""
    path = out / WORK_FOLDER / "lock"
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+", encoding="utf-8")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        except FileNotFoundError:
            continue  # a build that ends right now has cleared its workspace
        except BlockingIOError:
            file.seek(0)
            raise UsageError(
                "Another build is running in this folder.",
                where=out,
                found=f"process {file.read().strip()}",
                fix="wait for it, or choose another folder with -o FOLDER",
            ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def _remove_empty_folders(root: Path) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()) and WORK_FOLDER not in path.parts:
            path.rmdir()
