"""The manifest of a bundle: where it came from, what made it, and the hash of every file in it.

Hashed is everything in the folder but two things: `manifest.json` itself, and `report/local/`, where `check` and
`bench` leave what they measured on this machine. Nothing in a manifest depends on the time, the user or a path, so
that the same build gives the same bytes. What is computed (the parity report, a calibration)
also depends on the machine and on the number of threads, which order floating-point sums.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, NonNegativeInt

from r1v_export.count import Count
from r1v_export.errors import BundleError
from r1v_export.files import read_regular_bytes
from r1v_export.hashed_reads import FileHash
from r1v_export.progress import ProgressCallback, ignore_progress, subrange
from r1v_export.strict import StrictModel, load_json, parse_fields

SCHEMA_VERSION = 2
PASSED = "passed"
MANIFEST = "manifest.json"
WORK_FOLDER = ".work"
"""Folder of an unfinished build inside its output folder."""
LOCAL_REPORTS = "report/local"
"""Folder of what `check` and `bench` measured on this machine: not part of the product, not hashed."""

_CHUNK_BYTES = 4 << 20


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    plain = parts and "/".join(parts) == path and "\\" not in path and ":" not in parts[0]
    if not plain or ".." in parts or path.startswith("/"):
        raise ValueError("must be a plain relative path inside the bundle")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]


class _Entry(StrictModel):
    """A part of the manifest: values of the declared types only, nothing converted."""

    model_config = ConfigDict(strict=True)


class FileEntry(_Entry):
    """One file: its SHA-256 in hex and its size in bytes."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: NonNegativeInt


class SourceEntry(_Entry):
    """The checkpoint that was built."""

    kind: str
    """builtin, folder or hub."""
    name: str
    revision: str | None
    files: dict[RelativePath, FileEntry]


class StageEntry(_Entry):
    """One stage of the build: the fingerprint of all that went in, and the files that came out."""

    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    files: dict[RelativePath, FileEntry]


class Manifest(_Entry):
    """Contents of `manifest.json`."""

    schema_version: int = SCHEMA_VERSION
    producer: str
    command: str
    source: SourceEntry
    precision: str
    parity: dict[str, str]
    """Of each target: PASSED, or why its gate did not run."""
    image_parity: dict[str, str] = Field(default_factory=dict)
    """Of each engine together with what else can encode its images, by `targets.images.named_pair`: PASSED,
    where its gate failed, or why it did not run. Such a pair is used by default only where it passed."""
    decoder_parity: dict[str, str] = Field(default_factory=dict)
    """Of each engine together with another one that can decode for it, likewise, by `targets.images.named_pair`.
    Images are encoded by another one too in that comparison, where there is one."""
    device: str
    tools: dict[str, str]
    stages: dict[str, StageEntry]

    @property
    def files(self) -> dict[str, FileEntry]:
        """Every file that the bundle must hold, by its path inside it."""
        return {path: entry for stage in self.stages.values() for path, entry in stage.files.items()}

    def to_json(self) -> str:
        """Serialize the manifest as JSON."""
        return to_json(self.model_dump(mode="json"))


def to_json(value: Any) -> str:
    """JSON whose bytes depend on the value alone."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def hash_file(path: Path, on_progress: ProgressCallback = ignore_progress) -> FileEntry:
    """SHA-256 and size of a file, read in pieces.

    Raises:
        OSError: it cannot be read, or not to its end.
    """
    with closing(FileHash(path)) as file:
        buffer = bytearray(_CHUNK_BYTES)
        while file.advance(buffer):
            on_progress(file.position, file.size_bytes)
        return FileEntry(sha256=file.sha256, size=file.position)


def hash_files(
    paths: Mapping[str, Path],
    on_progress: ProgressCallback = ignore_progress,
    hash_one: Callable[[Path, ProgressCallback], FileEntry] = hash_file,
) -> dict[str, FileEntry]:
    """`hash_one` of every file, by the same names."""
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    total, before, entries = max(1, sum(sizes.values())), 0, {}
    for name, path in paths.items():
        entries[name] = hash_one(path, subrange(on_progress, before / total, (before + sizes[name]) / total))
        before += sizes[name]
    return entries


def _instead_of_a_manifest(bundle: Path) -> str:
    """Why `bundle` has no manifest."""
    if bundle.is_dir():
        return "no such file"
    return "a file and not a folder" if bundle.exists() else "no such folder"


_NAME_ONE = "name a bundle's folder, or build one with: r1v-export build -o FOLDER"


def read_manifest(bundle: Path) -> Manifest:
    """Read `manifest.json` of a bundle.

    Raises:
        BundleError: there is none, it is not JSON, is of another schema version, or has wrong fields.
    """
    path = bundle / MANIFEST
    rebuild = "build it again with: r1v-export build -o FOLDER"
    if not path.is_file():
        unfinished = (bundle / WORK_FOLDER).is_dir()
        raise BundleError(
            "This build is not finished." if unfinished else "This is not a bundle.",
            where=bundle,
            expected=MANIFEST,
            found="an unfinished build" if unfinished else _instead_of_a_manifest(bundle),
            fix="run the same build command again; it resumes" if unfinished else _NAME_ONE,
        )
    try:
        text = read_regular_bytes(path)
    except OSError as error:
        what = "The manifest cannot be read."
        raise BundleError(what, where=path, found=error.strerror or error, fix=rebuild) from error
    fields = load_json(text, BundleError, "The manifest is malformed", where=path, fix=rebuild)
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        newer = type(version) is int and version > SCHEMA_VERSION
        raise BundleError(
            "The bundle is of another schema version.",
            where=path,
            expected=SCHEMA_VERSION,
            found=version,
            fix=f"install a newer r1v-export, as built it, or {rebuild}" if newer else rebuild,
        )
    return parse_fields(Manifest, fields, BundleError, "The manifest is malformed", where=path, fix=rebuild)


@dataclass(frozen=True)
class ValidationIssue:
    """One way in which a bundle differs from its manifest."""

    path: str
    what: str
    expected: str | None = None
    found: str | None = None


_EXTRA = "is not in the manifest"
_REMOVE = "remove what is not part of the bundle, or move it to another folder"
_REPLACE = "fetch the bundle again, or build it again"


def find_issues(
    bundle: Path, manifest: Manifest, on_progress: ProgressCallback = ignore_progress
) -> list[ValidationIssue]:
    """Compare a bundle with its manifest: missing, extra and altered files, in order of their paths.

    A file may be a link, or lie in a linked folder, as in a hub's cache: its content is what is compared.
    """
    expected, issues = manifest.files, list[ValidationIssue]()
    total, before = max(1, sum(entry.size for entry in expected.values())), 0
    for path, entry in expected.items():
        end = before + entry.size
        issues += _compare(bundle, path, entry, subrange(on_progress, before / total, end / total))
        before = end
    for path, mode in _extra(bundle, expected):
        is_file = stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)
        issues.append(ValidationIssue(path, _EXTRA if is_file else "is no regular file"))
    return sorted(issues, key=lambda issue: issue.path)


def _compare(bundle: Path, path: str, expected: FileEntry, on_progress: ProgressCallback) -> list[ValidationIssue]:
    file = bundle / path
    try:
        status = file.stat()
    except OSError as error:  # missing, a link to nothing, or links in a circle
        found = f"a link to {str(file.readlink())!r}"[:300] if file.is_symlink() else None
        return [ValidationIssue(path, "is missing", found=found and f"{found}: {error.strerror}")]
    if not stat.S_ISREG(status.st_mode):
        return [ValidationIssue(path, "is no regular file")]
    if status.st_size != expected.size:
        return [
            ValidationIssue(
                path, "has another size", str(Count(expected.size, "byte")), str(Count(status.st_size, "byte"))
            )
        ]
    sha256 = hash_file(file, on_progress).sha256
    if sha256 != expected.sha256:
        return [ValidationIssue(path, "is altered", f"sha256 {expected.sha256}", f"sha256 {sha256}")]
    return []


def _extra(bundle: Path, expected: Collection[str]) -> list[tuple[str, int]]:
    """Path and mode of all that the manifest does not name, folders aside.

    Links are not followed, but for folders that lead to expected files: anything else directly in one is extra.
    """
    folders = {parent.as_posix() for path in expected for parent in PurePosixPath(path).parents}
    found: dict[str, int] = {}
    for folder, subfolders, files in os.walk(bundle):
        found |= _modes(bundle, (Path(folder, name) for name in (*files, *subfolders)))
    real = {path for path, mode in found.items() if stat.S_ISDIR(mode)} | {"."}
    for folder in folders - real:
        found |= _modes(bundle, (bundle / folder).iterdir() if (bundle / folder).is_dir() else ())
    known = {*expected, *folders, *real}
    return [(path, mode) for path, mode in found.items() if path not in known and not _is_free(path)]


def _modes(bundle: Path, paths: Iterable[Path]) -> dict[str, int]:
    return {path.relative_to(bundle).as_posix(): path.lstat().st_mode for path in paths}


def verify(bundle: Path, on_progress: ProgressCallback = ignore_progress) -> Manifest:
    """Recompute every hash of a bundle.

    Args:
        bundle: the folder.
        on_progress: called as bytes are hashed.

    Raises:
        BundleError: the manifest is unusable, or a file is missing, extra or altered.
    """
    manifest = read_manifest(bundle)
    if problems := find_issues(bundle, manifest, on_progress):
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BundleError(
            f"{first.path} {first.what}{more}.",
            where=bundle / first.path,
            expected=first.expected,
            found=first.found,
            fix=_REMOVE if all(problem.what == _EXTRA for problem in problems) else _REPLACE,
        )
    return manifest


def _is_free(path: str) -> bool:
    return path == MANIFEST or path.startswith(f"{LOCAL_REPORTS}/")
