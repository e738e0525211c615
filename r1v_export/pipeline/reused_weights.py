"""Which weight files the Hugging Face folders of a build have without writing them: each other's, and with
`--link-weights` the checkpoint's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors, stored_names
from r1v_export.config import BuildConfig
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.manifest import StageEntry
from r1v_export.quantization.groups import smoothed_tensors
from r1v_export.quantization.recipe import Scheme
from r1v_export.quantization.smoothing import smoothed_groups
from r1v_export.targets import registry
from r1v_export.targets.reused_files import ReusedFiles, TensorKey, linkable

_WEIGHTS = ".safetensors"
_OPTION = "--link-weights"


def reused_files(
    target: str, config: BuildConfig, checkpoint: Checkpoint, out: Path, finished: Mapping[str, StageEntry]
) -> ReusedFiles | None:
    """What a target's engine may hold without writing it; None where it is no Hugging Face folder.

    Args:
        out: folder of the bundle.
        finished: stages of this build, with their files.
    """
    if not registry.get_target(target).hub_folder:
        return None
    entries = [finished.get(f"{other}-engine") for other in _hub_targets(config) if other != target]
    siblings = tuple(
        {out / path: file.sha256 for path, file in entry.files.items() if path.endswith(_WEIGHTS)}
        for entry in entries
        if entry is not None
    )
    return ReusedFiles(siblings, _source_files(checkpoint) if config.link_weights else ())


def reused_bytes(target: str, config: BuildConfig, checkpoint: Checkpoint, schemes: Mapping[str, Scheme]) -> int:
    """How many bytes of a target's engine other files have, for the plan.

    Args:
        schemes: of every quantized linear; empty where they are still to be found: then none are counted.
    """
    targets = _hub_targets(config)
    if target not in targets or not schemes:
        return 0
    if target != targets[0]:
        return sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in _unquantized(checkpoint, schemes, True))
    if not config.link_weights:
        return 0
    return sum(path.stat().st_size for path in _linked_files(checkpoint, schemes))


def check_link_weights(config: BuildConfig, checkpoint: Checkpoint, out: Path, schemes: Mapping[str, Scheme]) -> None:
    """Refuse `--link-weights` where nothing can be linked, before any weight is read.

    Args:
        schemes: as in `reused_bytes`.

    Raises:
        UsageError: a target stores weights in another layout, or the checkpoint does.
        CapabilityError: the checkpoint is on another file system, or no file holds unchanged weights alone.
    """
    if not config.link_weights:
        return
    others = [name for name in config.targets if not registry.get_target(name).hub_folder]
    if others:
        takes = [target.name for target in registry.loadable() if target.hub_folder]
        raise UsageError(
            "The checkpoint's weight files cannot be linked into this target: it stores weights in another layout.",
            where=f"--target {others[0]}",
            expected=f"with {_OPTION}, only {' and '.join(takes)}",
            found=", ".join(others),
            fix=f"omit {_OPTION}, or build the other target into a bundle of its own",
        )
    source = _source_files(checkpoint)
    if not source:
        raise UsageError(
            "The checkpoint has no weight files that can be linked.",
            where=checkpoint.source.name,
            expected="safetensors files",
            found=checkpoint.files()[0].name,
            fix=f"omit {_OPTION}",
        )
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    if _device(source[0]) != _device(folder):
        raise CapabilityError(
            "The checkpoint's weight files cannot be linked: they are on another file system than the bundle.",
            where=folder,
            expected=f"a folder on the file system of {source[0].parent}",
            fix=f"choose such a folder with -o FOLDER, or omit {_OPTION}",
        )
    if schemes:
        _linked_files(checkpoint, schemes)


def _device(path: Path) -> int:
    return path.stat().st_dev


def _hub_targets(config: BuildConfig) -> list[str]:
    return [name for name in config.targets if registry.get_target(name).hub_folder]


def _source_files(checkpoint: Checkpoint) -> tuple[Path, ...]:
    return tuple(path for path in checkpoint.files() if path.name.endswith(_WEIGHTS))


def _linked_files(checkpoint: Checkpoint, schemes: Mapping[str, Scheme]) -> Sequence[Path]:
    return linkable(_source_files(checkpoint), _unquantized(checkpoint, schemes, False))


def _unquantized(checkpoint: Checkpoint, schemes: Mapping[str, Scheme], rewritten: bool) -> set[TensorKey]:
    """The tensors that are not quantized, as the checkpoint stores them.

    Args:
        rewritten: whether those count that take up scales of AWQ or SmoothQuant.
    """
    spec = checkpoint.spec
    others = {f"{linear}.weight" for linear in schemes}
    if not rewritten:
        others |= {name for group in smoothed_groups(spec, schemes) for name in smoothed_tensors(group)}
    keys = set[TensorKey]()
    for name, (rows, *columns) in expected_tensors(spec).items():
        if name not in others:
            names = stored_names(name, spec)
            shape = (rows // len(names), *columns)
            keys |= {(stored, checkpoint.tensors[name].dtype, shape) for stored in names}
    return keys
