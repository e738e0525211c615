"""What the reports of a build and of `check` say of the bytes that were compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1v_export.bundle import ENGINES, GRAPHS, Bundle
from r1v_export.config import Device
from r1v_export.manifest import FileEntry, hash_files
from r1v_export.parity.provenance import HashedFiles, Provenance
from r1v_export.pipeline import provenance
from r1v_export.pipeline.calibration import CALIBRATION
from r1v_export.pipeline.stage import StageInputs
from r1v_export.progress import Progress
from r1v_export.targets import registry


@dataclass(frozen=True)
class BuildLabel:
    """What a build's reports call it.

    model, revision: of the checkpoint.
    command: that builds it again.
    date: UTC, None where nobody asked for one.
    """

    model: str
    revision: str | None
    command: str
    date: str | None


def of_build(
    label: BuildLabel, target: str, device: Device, sources: Mapping[str, Path], inputs: StageInputs
) -> Provenance:
    """That of a target's gate.

    Args:
        sources: the checkpoint's files by name.
        inputs: with their hashes, and the stages of the build before the gate.
    """
    checkpoint = {
        name: FileEntry(sha256=inputs.sources[name], size=path.stat().st_size) for name, path in sources.items()
    }
    files = {path: entry for stage in inputs.finished.values() for path, entry in stage.files.items()}
    return Provenance(
        model=label.model,
        revision=label.revision,
        checkpoint=HashedFiles.of(checkpoint),
        bundle=HashedFiles.of(_compared(files, (target,))),
        read_back=registry.get_target(target).read_back,
        command=label.command,
        device=provenance.device_name(device),
        date=label.date,
    )


def of_check(bundle: Bundle, targets: Sequence[str], device: Device, command: str, progress: Progress) -> Provenance:
    """That of a finished bundle: its compared files are hashed again, the checkpoint has just been.

    Args:
        targets: whose engines are compared: one, or a pair, of which the first answers.
        command: as typed.
    """
    recorded = _compared(bundle.manifest.files, targets)
    with progress.stage("bundle-hash") as task:
        there = {name: bundle.folder / name for name in recorded if (bundle.folder / name).is_file()}
        found = hash_files(there, task.report)
    source = bundle.manifest.source
    return Provenance(
        model=source.name,
        revision=source.revision,
        checkpoint=HashedFiles.of(source.files),
        bundle=HashedFiles.of(found),
        altered=tuple(name for name in sorted(recorded) if found.get(name) != recorded[name]),
        read_back=registry.get_target(targets[0]).read_back,
        command=command,
        device=provenance.device_name(device),
        date=provenance.source_date() or provenance.utc_now(),
    )


def _compared(files: Mapping[str, FileEntry], targets: Sequence[str]) -> dict[str, FileEntry]:
    """Those of a bundle's files that decide what engines compute."""
    folders = (f"{GRAPHS}/", f"{CALIBRATION}/", *(f"{ENGINES}/{target}/" for target in targets))
    return {path: entry for path, entry in files.items() if path.startswith(folders)}
