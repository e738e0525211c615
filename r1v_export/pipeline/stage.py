"""A stage of a build, and the fingerprint that decides whether it must run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1v_export.errors import CapabilityError
from r1v_export.manifest import StageEntry, to_json
from r1v_export.pipeline.provenance import code_digest, tool_versions
from r1v_export.progress import ProgressCallback


@dataclass(frozen=True)
class StageInputs:
    """Hashes of what a stage reads.

    sources: SHA-256 of the checkpoint's files by name, or what stands for those that are not hashed yet.
    finished: the earlier stages with their files.
    """

    sources: Mapping[str, str]
    finished: Mapping[str, StageEntry]


Make = Callable[[Path, StageInputs, ProgressCallback], None]
"""Writes a stage's files below a folder, in the bundle's layout."""


@dataclass(frozen=True)
class Needs:
    """What a stage takes while it runs.

    memory_bytes: the most that it holds at once, roughly; 0 for less than a gigabyte.
    scratch_bytes: disk for files that are gone when it ends.
    note: a sentence about how it will run, for the plan.
    obstacle: why it cannot run on this machine.
    """

    memory_bytes: int = 0
    scratch_bytes: int = 0
    note: str = ""
    obstacle: CapabilityError | None = None


@dataclass(frozen=True)
class Stage:
    """`inputs -> outputs`.

    make: writes the outputs; the same inputs give the same bytes.
    settings: what it takes from the build's config, as plain JSON values.
    code: folders and files of this package that it runs, for the fingerprint.
    tools: distributions that it computes with.
    sources: the checkpoint's files that it reads, by name.
    after: earlier stages whose files it reads.
    records_hashes: whether its files contain the hashes of its sources, which must then be known before it runs.
    is_task: whether it may run at the same time as others, in another process: the long ones.
    size_bytes, seconds: what it will write and take, roughly, for the plan.
    needs: what else it takes, found out when it is asked for.
    notes: sentences that people should read once it is done, from the bundle's folder.
    """

    name: str
    make: Make
    code: tuple[str, ...]
    tools: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    records_hashes: bool = False
    is_task: bool = False
    size_bytes: int = 0
    seconds: Callable[[], float] = lambda: 0.0
    needs: Callable[[], Needs] = Needs
    notes: Callable[[Path], Sequence[str]] = lambda bundle: ()


def fingerprint(stage: Stage, sources: Mapping[str, str], finished: Mapping[str, StageEntry]) -> str:
    """SHA-256 over all that decides a stage's outputs: settings, code, tool versions, and the hashes of its inputs.

    Inputs count by content, not by how they came about: a changed stage whose outputs stay the same reruns nothing
    after it.

    Args:
        sources: SHA-256 of the checkpoint's files, by name, or what stands for those that are not hashed yet.
    """
    ingredients = {
        "stage": stage.name,
        "settings": stage.settings,
        "code": code_digest(stage.code),
        "tools": tool_versions(stage.tools),
        "sources": {name: sources[name] for name in stage.sources},
        "inputs": {path: entry.sha256 for name in stage.after for path, entry in finished[name].files.items()},
    }
    return hashlib.sha256(to_json(ingredients).encode()).hexdigest()
