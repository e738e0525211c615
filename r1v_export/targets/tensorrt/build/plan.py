"""A plan file and the small JSON file next to it, which describes the plan without TensorRT.

TensorRT's own answer to a plan of another version, for another GPU, or cut short is an error without words, or worse.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from r1v_export.count import Count
from r1v_export.errors import BundleError, CapabilityError, EngineMismatchError
from r1v_export.files import read_regular_bytes
from r1v_export.strict import StrictModel, parse_json
from r1v_export.targets.tensorrt.build.profiles import Profile, Range
from r1v_export.targets.tensorrt.library import Library

PLAN, DESCRIPTION, GRAPH, LAYERS = ".plan", ".json", ".onnx", ".layers.json"
"""Endings of an engine's files: the plan, what it is, the lowered graph it was made from, its layers."""

_CHUNK_BYTES = 64 << 20


class Binding(StrictModel):
    """One input or output; sizes that profiles decide are symbols."""

    name: str
    is_input: bool
    dtype: str
    """An ONNX element type in lower case."""
    shape: tuple[str | int, ...]


class PlanInfo(StrictModel):
    """What a plan is."""

    library: str
    """Target whose library made it and runs it."""
    version: str
    compute_capabilities: tuple[int, ...]
    bindings: tuple[Binding, ...]
    profiles: tuple[dict[str, tuple[int, int, int]], ...]
    """Symbol -> least, best and most."""
    fused_attention: bool
    """False where attention had no fused kernel and runs as several."""
    stripped: bool
    weight_bytes: NonNegativeInt
    """Of the graph's weights, as they are stored."""
    plan_bytes: NonNegativeInt
    sha256: str

    @property
    def ranges(self) -> list[Profile]:
        """The optimization profiles with named minimum, optimum and maximum."""
        return [{symbol: Range(*sizes) for symbol, sizes in profile.items()} for profile in self.profiles]

    @property
    def inputs(self) -> tuple[Binding, ...]:
        """Bindings that are inputs."""
        return tuple(binding for binding in self.bindings if binding.is_input)

    @property
    def outputs(self) -> tuple[Binding, ...]:
        """Bindings that are outputs."""
        return tuple(binding for binding in self.bindings if not binding.is_input)


class PlanWriter:
    """Writes a plan as it comes, and hashes it on the way.

    Args:
        file: unbuffered, so that a full disk is noticed in `write` and not when the file is closed.

    Attributes:
        error: why the disk took no more, if so; TensorRT's callbacks cannot raise it.
    """

    def __init__(self, file: RawIOBase) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self.size_bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Returns how many bytes were taken: all, or 0 where the disk is full."""
        view = memoryview(data).cast("B")
        try:
            for start in range(0, len(view), _CHUNK_BYTES):
                chunk = view[start : start + _CHUNK_BYTES]
                self._hash.update(chunk)
                while chunk:
                    chunk = chunk[self._file.write(chunk) :]
        except OSError as error:
            self.error = error
            return 0
        self.size_bytes += len(view)
        return len(view)

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def raise_error(self, path: Path) -> None:
        """Raise the error that writing met, if any.

        Raises:
            CapabilityError: the disk is full, or refused the plan otherwise.
        """
        if self.error is None:
            return
        full = self.error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CapabilityError(
            "The disk has no room for a plan." if full else "A plan cannot be written.",
            where=path,
            found=self.error,
            fix="make room, or choose a folder on another disk with -o FOLDER" if full else None,
        ) from self.error


def stream_writer(library: Library, writer: PlanWriter) -> Any:
    """An IStreamWriter that hands what it gets to `writer`."""

    class StreamWriter(library.module.IStreamWriter):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            library.module.IStreamWriter.__init__(self)

        def write(self, data: Any) -> int:
            return writer.write(data)

    return StreamWriter()


def read_info(folder: Path, name: str) -> PlanInfo:
    """The description of the plan `folder/<name>.plan`.

    Raises:
        BundleError: the description or the plan is missing, malformed, or cut short.
    """
    path, plan = folder / f"{name}{DESCRIPTION}", folder / f"{name}{PLAN}"
    fix = "build the bundle again"
    try:
        text = read_regular_bytes(path)
        found_bytes = plan.stat().st_size
    except OSError as error:
        raise BundleError("A TensorRT engine is incomplete.", where=path, found=error, fix=fix) from error
    info = parse_json(PlanInfo, text, BundleError, "A plan's description is invalid", where=path, fix=fix)
    if found_bytes != info.plan_bytes:
        raise BundleError(
            "A plan is cut short." if found_bytes < info.plan_bytes else "A plan is not the one that was built.",
            where=plan,
            expected=str(Count(info.plan_bytes, "byte")),
            found=str(Count(found_bytes, "byte")),
            fix=fix,
        )
    return info


def require_runs_here(info: PlanInfo, library: Library, plan: Path, compute_capability: int | None) -> None:
    """Check that a plan was built for the installed library and this GPU.

    Args:
        compute_capability: of the GPU; None if there is none, which skips that check.

    Raises:
        EngineMismatchError: the plan is of another library, version, or GPU.
    """
    ours, theirs = f"{library.target} {library.version}", f"{info.library} {info.version}"
    if ours != theirs:
        raise EngineMismatchError(
            "A plan is of another version of TensorRT.",
            where=plan,
            expected=ours,
            found=theirs,
            fix=f"build the bundle again, or install {theirs.replace(' ', '==')}",
        )
    if compute_capability is not None and not _serves(info.compute_capabilities, compute_capability):
        raise EngineMismatchError(
            "A plan is for another GPU.",
            where=plan,
            expected=f"compute capability {compute_capability}",
            found=", ".join(map(str, info.compute_capabilities)),
            fix=f"build with --target {library.target} --sm {compute_capability}",
        )


def _serves(built_for: Sequence[int], compute_capability: int) -> bool:
    return compute_capability in built_for
