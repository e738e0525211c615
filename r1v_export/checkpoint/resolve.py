"""MODEL on the command line -> a folder: the model the package carries, a path, or an id of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

from r1v_export.errors import CheckpointError, UsageError

BUILTIN_NAME = "r1v-nano"
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Source(NamedTuple):
    """Where a checkpoint came from."""

    kind: Literal["builtin", "folder", "hub"]
    name: str
    """`r1v-nano`, the path as given, or the hub id."""
    revision: str | None
    """The hub's commit hash."""


class Resolved(NamedTuple):
    """A checkpoint folder and where it came from."""

    folder: Path
    source: Source


def resolve(model: str | Path | None, *, revision: str | None = None, offline: bool = False) -> Resolved:
    """Find a checkpoint's folder; download it when it is a hub id that is not cached.

    Args:
        model: None or "r1v-nano" for the small trained model of the package, a folder, or a hub id `owner/name`.
        revision: branch, tag or commit of the hub's repository.
        offline: use the hub's local cache only.

    Raises:
        UsageError: a revision for something that is not a hub id.
        CheckpointError: no such folder, or the hub's files cannot be had.
    """
    folder, kind = _local(model)
    if folder is not None:
        if revision is not None:
            raise UsageError("A revision requires a hub id.", found=f"--revision {revision}", fix="omit it")
        return Resolved(folder, Source(kind, BUILTIN_NAME if kind == "builtin" else str(model), None))
    name = str(model)
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(
            "There is no such checkpoint.",
            where=name,
            expected=f"a folder with config.json, a hub id such as Skywork/Skywork-R1V3-38B, or {BUILTIN_NAME}",
            found="neither a folder nor of the form owner/name",
            fix="check the path",
        )
    folder = _download(name, revision, offline)
    return Resolved(folder, Source("hub", name, folder.name))


def _local(model: str | Path | None) -> tuple[Path | None, Literal["builtin", "folder"]]:
    if model == "":
        raise CheckpointError("MODEL is empty.", expected="a folder or a hub id", fix="name one, or omit it")
    if model is not None and Path(model).is_dir():
        return Path(model), "folder"
    if model is not None and Path(model).is_file():
        raise CheckpointError(
            "MODEL is a file.",
            where=model,
            expected="a folder, or a file whose name ends in .gguf",
            found="a file",
            fix="pass the folder that contains it",
        )
    if model is None or str(model) == BUILTIN_NAME:
        return Path(__file__).parents[1] / "nano" / "model", "builtin"
    return None, "folder"


def _download(hub_id: str, revision: str | None, offline: bool) -> Path:
    """The snapshot folder of a hub repository, in the hub's own cache; its name is the commit hash."""
    import huggingface_hub

    try:
        snapshot = huggingface_hub.snapshot_download(
            hub_id, revision=revision, allow_patterns=_HUB_FILES, local_files_only=offline
        )
    # The client lets through whatever its HTTP library raises, and that library differs between its versions.
    except Exception as error:
        raise _hub_error(error, hub_id, revision, offline) from error
    return Path(snapshot)


def _hub_error(error: Exception, hub_id: str, revision: str | None, offline: bool) -> CheckpointError:
    """A hub client's exception in the words of this program."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import LocalEntryNotFoundError

    what, fix = _explain(error, offline)
    is_absent = offline and type(error) is LocalEntryNotFoundError  # its text is about a parameter of the client
    found = f"no snapshot in {HF_HUB_CACHE}" if is_absent else f"{type(error).__name__}: {' '.join(str(error).split())}"
    return CheckpointError(
        what,
        where=hub_id if revision is None else f"{hub_id} at revision {revision}",
        found=found[:300],
        fix=fix.format(hub_id=hub_id),
    )


def _explain(error: Exception, offline: bool) -> tuple[str, str]:
    """What went wrong and what to do about it. Subclasses come first: a gated repository is also one not found."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.LocalEntryNotFoundError) and isinstance(error.__cause__, hub.HfHubHTTPError):
        error = error.__cause__  # the hub answered; that there is nothing in the cache either is a consequence
    if isinstance(error, hub.RevisionNotFoundError):
        return "The hub's repository has no such revision.", "name an existing branch, tag or commit"
    if isinstance(error, hub.GatedRepoError):
        return "The hub's repository is gated.", "accept its terms on the page of {hub_id}, then run `hf auth login`"
    if isinstance(error, hub.RepositoryNotFoundError):
        return "The hub has no such repository, or it is private.", "check the spelling, or run `hf auth login`"
    if isinstance(error, hub.HfHubHTTPError) and error.response.status_code in (401, 403):
        return "The hub refuses access to the repository.", "run `hf auth login` with an account that has access"
    if isinstance(error, hub.IncompleteSnapshotError):
        return "The checkpoint is cached only in part.", "run `hf download {hub_id}` where there is a network"
    if isinstance(error, hub.LocalEntryNotFoundError) and offline:
        return "The checkpoint is not in the hub's local cache.", "run `hf download {hub_id}` where there is a network"
    elsewhere = "or download it elsewhere and give the folder's path"
    if isinstance(error, hub.LocalEntryNotFoundError):
        return "The hub cannot be reached.", f"check the network, {elsewhere}"
    return "The checkpoint cannot be downloaded.", f"try again, {elsewhere}"
