"""The folder of a calibration that is not finished: what is done for each block, so that it can go on after a stop.

RESUME/key.json                       the calibration's key; the state of another key is removed
RESUME/activations/                   between two blocks, see `activations`
RESUME/result/                        what becomes OUT when all is done, and stays here until RESUME's owner removes it
RESUME/result/{qweight,statistics}/BLOCK.safetensors, RESUME/scales/BLOCK.safetensors
RESUME/records/BLOCK.json             written last: the block is done
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import Field
from torch import Tensor

from r1v_export.checkpoint.tensor_file import StoredTensor, read_header
from r1v_export.checkpoint.tensor_writer import ALIGNMENT_BYTES, PAGE_BYTES, NewTensor, write_tensors
from r1v_export.errors import BundleError, UsageError
from r1v_export.files import read_regular_bytes, read_regular_text, sync_folder, write_atomically
from r1v_export.manifest import to_json
from r1v_export.quantization.artifact.qweight_places import QWEIGHT
from r1v_export.quantization.calibration.key import CalibrationKey
from r1v_export.quantization.calibration_stats import InputEntry
from r1v_export.strict import StrictModel, parse_json

KEY = "key.json"

_OURS = {KEY, f".{KEY}.unfinished", "activations", "linked", "records", "result", "scales", "scratch"}
"""Everything that a resume folder can hold, whenever the run was interrupted."""

_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
"""What `link` fails with where the file system has no hard links, or has given a file as many as it can."""


def default_resume_folder(out: Path) -> Path:
    """Where an unfinished calibration is kept by default: next to its result."""
    return out.with_name(f".{out.name}.work")


def open_resume_state(out: Path, key: CalibrationKey, folder: Path | None) -> ResumeState:
    """The unfinished calibration that is to become `out`.

    Args:
        folder: the caller's, which removes it once the result is safe; next to `out` and removed at the end if omitted.
    """
    return ResumeState(folder or default_resume_folder(out), key, kept=folder is not None)


class BlockRecord(StrictModel):
    """What `stats.json` will say of a finished block."""

    inputs: dict[str, InputEntry] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class ResumeState:
    """The unfinished calibration of one key.

    Args:
        folder: made if it is not there; must be on the file system of the result.
        key: of the calibration; what is left of another one is removed.
        kept: whether the folder outlives the calibration, for a caller that may yet lose the result.
    """

    def __init__(self, folder: Path, key: CalibrationKey, *, kept: bool = False) -> None:
        self.folder, self.key, self.kept = folder, key, kept
        self.result = folder / "result"
        text = to_json(key.model_dump(mode="json"))
        path = folder / KEY
        if not path.is_file() or read_regular_text(path) != text:
            if folder.exists() and not {entry.name for entry in folder.iterdir()} <= _OURS:
                raise UsageError("The resume folder holds other files.", where=folder, fix="name another one")
            shutil.rmtree(folder, ignore_errors=True)
            write_text(path, text)

    @property
    def activations(self) -> Path:
        """Folder of the activations between blocks."""
        return self.folder / "activations"

    def record(self, block: str) -> BlockRecord | None:
        """The record of a finished block; None if it is not finished."""
        path = self._record(block)
        if not path.is_file():
            return None
        what, fix = "The record of a block is damaged", f"remove {self.folder} and calibrate again"
        return parse_json(BlockRecord, read_regular_bytes(path), BundleError, what, where=path, fix=fix)

    def write_block(self, block: str, qweight: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> None:
        """Keep what a quantized block consists of."""
        if qweight:
            self.save(self.result / QWEIGHT / f"{block}.safetensors", qweight, PAGE_BYTES)
        self.save(self._scales(block), scales)

    def finish_block(self, block: str, record: BlockRecord) -> None:
        """Record that a block is finished."""
        write_text(self._record(block), to_json(record.model_dump(mode="json")))

    def join_scales(self, blocks: Sequence[str], path: Path) -> None:
        """Write the scales of all blocks into one file, holding one tensor at a time."""
        stored = [tensor for block in blocks for tensor in read_header(self._scales(block)).values()]
        self._save(path, [NewTensor(s.name, s.dtype, s.shape, partial(_read_flat, s)) for s in stored])

    def save(self, path: Path, tensors: Mapping[str, Tensor], alignment: int = ALIGNMENT_BYTES) -> None:
        """Write a safetensors file, whole or not at all, its tensors in order of their names.

        Args:
            alignment: of the first tensor, in bytes.
        """
        named = sorted(tensors.items())
        self._save(path, [NewTensor(name, t.dtype, tuple(t.shape), partial(_flat, t)) for name, t in named], alignment)

    def _save(self, path: Path, tensors: Sequence[NewTensor], alignment: int = ALIGNMENT_BYTES) -> None:
        scratch = self.folder / "scratch" / path.stem  # of its own: parts of a merge write at the same time
        scratch.mkdir(parents=True, exist_ok=True)
        for _ in write_tensors(scratch, tensors, shards=1, alignment=alignment):
            pass
        (written,) = scratch.iterdir()
        write_atomically(path, written.replace)

    def finish(self, out: Path) -> None:
        """Let the result appear in `out`, whole or not at all, and remove everything else; where the folder is kept,
        what a run needs that begins here again, with the result's files as hard links."""
        out.parent.mkdir(parents=True, exist_ok=True)
        linked = self.folder / "linked"
        kept = self.kept and _link_files(self.result, linked)
        if out.is_dir():
            out.rmdir()
        (linked if kept else self.result).replace(out)
        sync_folder(out.parent)
        if kept:
            shutil.rmtree(self.activations, ignore_errors=True)
        else:
            self.clear()

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self, block: str) -> Path:
        return self.folder / "records" / f"{block}.json"

    def _scales(self, block: str) -> Path:
        return self.folder / "scales" / f"{block}.safetensors"


def _link_files(folder: Path, links: Path) -> bool:
    """Make a folder of hard links to another one's files; False, and no folder, where the file system has no links."""
    shutil.rmtree(links, ignore_errors=True)
    try:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            link = links / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link)
    except OSError as error:
        shutil.rmtree(links, ignore_errors=True)
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _flat(tensor: Tensor) -> list[Tensor]:
    return [tensor.flatten().cpu()]


def _read_flat(stored: StoredTensor) -> list[Tensor]:
    return _flat(stored.read())


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
