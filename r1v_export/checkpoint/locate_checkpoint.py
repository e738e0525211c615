"""The checkpoint that a bundle was built from, found again."""

from __future__ import annotations

from r1v_export.bundle import Bundle
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import UsageError
from r1v_export.manifest import hash_files
from r1v_export.progress import Progress


def open_source(bundle: Bundle, model: str | None, progress: Progress, offline: bool = False) -> Checkpoint:
    """The checkpoint that a bundle was built from, found again and proved to be the same, file by file.

    Args:
        model: where it is; needed for a folder, whose path no bundle records.

    Raises:
        UsageError: it is not known where the checkpoint is, or `model` is another one.
    """
    source = bundle.manifest.source
    if model is None and source.kind == "folder":
        raise UsageError(
            "The bundle was built from a folder, and does not record where it is.",
            where=bundle.folder,
            expected=f"the folder of {source.name}",
            fix="name it with --model FOLDER",
        )
    revision = source.revision if model is None else None
    checkpoint = Checkpoint.open(model or source.name, revision=revision, offline=offline)
    files = {path.name: path for path in (*checkpoint.files(), *checkpoint.auxiliary_files())}
    with progress.stage("checkpoint-hash") as task:
        found = hash_files(files, task.report)
    if found != source.files:
        differing = sorted(
            name for name in found.keys() | source.files.keys() if found.get(name) != source.files.get(name)
        )
        raise UsageError(
            "This is not the checkpoint that the bundle was built from.",
            where=checkpoint.folder,
            expected=f"the files of {source.name} as in the manifest",
            found=f"differences in {', '.join(differing)}",
            fix="name the right one with --model, or build the bundle again",
        )
    return checkpoint
