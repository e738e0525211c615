"""The manifest of a bundle: where it came from, what made it, and the hash of every file in it.

Hashed is everything in the folder but two things: `manifest.json` itself, and `report/local/`, where `check` and
`bench` leave what they measured on this machine. Nothing in a manifest depends on the time, the user or a path, so
that the same build gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt

from r1v_export.errors import BundleError
from r1v_export.files import open_regular, read_regular_text
from r1v_export.progress import ProgressCallback, ignore_progress, subrange
from r1v_export.strict import StrictModel, parse_fields

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


class FileEntry(StrictModel):
    """One file: its SHA-256 in hex and its size in bytes."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: NonNegativeInt


class SourceEntry(StrictModel):
    """The checkpoint that was built."""

    kind: str
    """builtin, folder or hub."""
    name: str
    revision: str | None
    files: dict[RelativePath, FileEntry]


class StageEntry(StrictModel):
    """One stage of the build: the fingerprint of all that went in, and the files that came out."""

    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    files: dict[RelativePath, FileEntry]


class Manifest(StrictModel):
    """`manifest.json`."""

    schema_version: int = SCHEMA_VERSION
    producer: str
    command: str
    source: SourceEntry
    precision: str
    parity: dict[str, str]
    """Of each target: PASSED, or why its gate did not run."""
    device: str
    tools: dict[str, str]
    stages: dict[str, StageEntry]

    @property
    def files(self) -> dict[str, FileEntry]:
        """Every file that the bundle must hold, by its path inside it."""
        return {path: entry for stage in self.stages.values() for path, entry in stage.files.items()}

    def to_json(self) -> str:
        return to_json(self.model_dump(mode="json"))


def to_json(value: Any) -> str:
    """JSON whose bytes depend on the value alone."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def hash_file(path: Path, on_progress: ProgressCallback = ignore_progress) -> FileEntry:
    """SHA-256 and size of a file, read in pieces."""
    digest, size, buffer = hashlib.sha256(), 0, bytearray(_CHUNK_BYTES)
    total = path.stat().st_size
    with open_regular(path) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            size += count
            on_progress(size, total)
    return FileEntry(sha256=digest.hexdigest(), size=size)


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
            found="an unfinished build" if unfinished else "no such file" if bundle.is_dir() else "no such folder",
            fix="run the same build command again; it goes on where it stopped" if unfinished else rebuild,
        )
    try:
        fields = json.loads(read_regular_text(path))
    except (ValueError, RecursionError) as error:
        raise BundleError("The manifest is not JSON.", where=path, found=error, fix=rebuild) from error
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            "The bundle is of another schema version.", where=path, expected=SCHEMA_VERSION, found=version, fix=rebuild
        )
    return parse_fields(Manifest, fields, BundleError, "The manifest is malformed", where=path, fix=rebuild)


@dataclass(frozen=True)
class ValidationIssue:
    """One way in which a bundle differs from its manifest."""

    path: str
    what: str
    expected: str | None = None
    found: str | None = None


def find_issues(
    bundle: Path, manifest: Manifest, on_progress: ProgressCallback = ignore_progress
) -> list[ValidationIssue]:
    """Compare a bundle with its manifest: links, missing, extra and altered files, in order of their paths."""
    expected, present = manifest.files, dict(_walk(bundle))
    total, before = max(1, sum(entry.size for entry in expected.values())), 0
    problems = [ValidationIssue(path, "is missing") for path in expected.keys() - present.keys()]
    for path, mode in present.items():
        if not stat.S_ISREG(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
            problems.append(ValidationIssue(path, f"is {kind}", "a regular file inside the bundle"))
        elif path not in expected:
            problems += [] if _is_free(path) else [ValidationIssue(path, "is not in the manifest")]
        else:
            end = before + expected[path].size
            problems += _compare(bundle, path, expected[path], subrange(on_progress, before / total, end / total))
            before = end
    return sorted(problems, key=lambda problem: problem.path)


def _compare(bundle: Path, path: str, expected: FileEntry, on_progress: ProgressCallback) -> list[ValidationIssue]:
    size = (bundle / path).stat().st_size
    if size != expected.size:
        return [ValidationIssue(path, "has another size", f"{expected.size} bytes", f"{size} bytes")]
    sha256 = hash_file(bundle / path, on_progress).sha256
    if sha256 != expected.sha256:
        return [ValidationIssue(path, "is altered", f"sha256 {expected.sha256}", f"sha256 {sha256}")]
    return []


def verify(bundle: Path, on_progress: ProgressCallback = ignore_progress) -> Manifest:
    """Recompute every hash of a bundle.

    Args:
        bundle: the folder.
        on_progress: called as bytes are hashed.

    Raises:
        BundleError: the manifest is unusable, or a file is missing, extra, altered or a link.
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
            fix="fetch the bundle again, or build it again",
        )
    return manifest


def _walk(bundle: Path) -> Iterator[tuple[str, int]]:
    """Path and mode of all below a folder that is not itself a folder; links are not followed."""
    for folder, folders, files in os.walk(bundle):
        for path in (Path(folder, name) for name in (*files, *folders)):
            mode = path.lstat().st_mode
            if not stat.S_ISDIR(mode):
                yield path.relative_to(bundle).as_posix(), mode


def _is_free(path: str) -> bool:
    return path == MANIFEST or path.startswith(f"{LOCAL_REPORTS}/")
