"""What `import r1v_export` offers to build, open, check and verify bundles: the pipeline's functions, with the
command line's defaults.

Paths are `str` or `Path`. Nothing is printed unless `show_progress` is true; then progress goes to stderr.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1v_export import build_extra
from r1v_export.bundle import Bundle
from r1v_export.config import BuildConfig, Device, GateMode, Precision
from r1v_export.manifest import Manifest
from r1v_export.progress import Progress
from r1v_export.runner.base import BaseRunner

if TYPE_CHECKING:
    from r1v_export.parity.schema import ParityReport

AnyPath = str | Path


@build_extra.required()
def build(
    model: AnyPath | None = None,
    *,
    out: AnyPath,
    precision: Precision | None = None,
    targets: Sequence[str] | None = None,
    recipe: AnyPath | None = None,
    budget: str | None = None,
    device: Device | None = None,
    config: BuildConfig | AnyPath | None = None,
    force: bool = False,
    offline: bool = False,
    ray: str | None = None,
    show_progress: bool = False,
) -> Bundle:
    """Turn a checkpoint into a bundle of engines, ending with the parity gate; `r1v-export build`.

    An interrupted build resumes.

    Args:
        model: hub id or folder; r1v-nano, which the package carries, by default.
        out: folder of the bundle.
        precision: fp32 (the default), fp16, bf16, fp8, int8 or int4.
        targets: names of `r1v-export doctor`; ONNX Runtime by default.
        recipe: how to quantize: a name of `r1v-export recipes list`, or a YAML file.
        budget: choose each module's precision within `kl=0.02`, for example, or `size=20GB`.
        device: where engines run and are checked: cpu (the default) or cuda.
        config: a build file or a BuildConfig with more settings; the arguments above win over it.
        force: run every stage, also those that are done.
        offline: use the hub's local cache only.
        ray: address of a Ray cluster that runs the long stages; see docs/ray.md.

    Raises:
        UsageError: settings that are unknown or contradict each other.
        CheckpointError: the checkpoint is missing, damaged or not supported.
        CapabilityError: this machine lacks something that the build needs.
        ParityError: an engine's numbers leave their tolerance.
    """
    from r1v_export.build_file import load_config
    from r1v_export.pipeline.build import build as run

    given = {
        "model": None if model is None else str(model),
        "precision": precision,
        "targets": None if targets is None else tuple(targets),
        "recipe": None if recipe is None else str(recipe),
        "budget": budget,
        "device": device,
    }
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if isinstance(config, BuildConfig):
        settings = load_config(None, config.model_dump(exclude_unset=True) | overrides)
    else:
        settings = load_config(None if config is None else Path(config), overrides)
    progress = Progress(quiet=not show_progress)
    return open_bundle(run(settings, Path(out), force=force, offline=offline, progress=progress, ray=ray).out)


def open_bundle(path: AnyPath) -> Bundle:
    """Open a finished bundle; reads its manifest and nothing else.

    Raises:
        BundleError: not a whole bundle of this schema version.
    """
    return Bundle.open(Path(path))


@build_extra.required()
def open_runner(
    bundle: Bundle | AnyPath,
    *,
    target: str | None = None,
    device: Device = "cpu",
    model: AnyPath | None = None,
    engine: AnyPath | None = None,
    vision_target: str = "auto",
    decoder_target: str = "auto",
) -> BaseRunner:
    """A runner that answers questions with one of a bundle's engines; `r1v-export run`.

    Args:
        target: an engine of the bundle, or `pytorch`; the bundle's first by default.
        model: folder of the checkpoint, for `pytorch`, if the bundle was built from a folder.
        engine: a folder of `r1v-export engine`, or `llm-api`: a target's own library decodes.
        vision_target: what encodes images: the target, another engine of the bundle, a part such as
            `onnxruntime-int8`, or `auto`, the fastest one that a gate has compared and that runs here.
        decoder_target: what decodes, likewise: the target, what it has a part for, or `auto`.

    Raises:
        UsageError: target and engine do not match, or the bundle has no such target.
        BundleError: no whole bundle.
        CapabilityError: this machine lacks what the engine needs.
    """
    from r1v_export.runner.open_runner import open_runner as run

    return run(
        _folder(bundle),
        target,
        None if model is None else str(model),
        device,
        None if engine is None else str(engine),
        vision_target=vision_target,
        decoder_target=decoder_target,
    )


@build_extra.required()
def check(
    bundle: Bundle | AnyPath,
    *,
    target: str | None = None,
    device: Device = "cpu",
    model: AnyPath | None = None,
    questions: int | None = None,
    max_new_tokens: int | None = None,
    gate: GateMode = "auto",
    blocks: bool = False,
    show_progress: bool = False,
) -> list[ParityReport]:
    """Compare a bundle's engine with PyTorch on this machine; `r1v-export check`.

    Args:
        model: folder of the checkpoint, if the bundle was built from a folder.
        questions: how many both sides answer; 32 if omitted, 2 of a streamed gate.
        max_new_tokens: of the longest answer; 96 if omitted, 16 of a streamed gate.
        gate: compare whole models, or a block at a time in bounded memory; whole where it fits if `auto`.
        blocks: compare each block of the vision tower.

    Returns:
        A report for each gate; `report.passed` says whether every limit holds, `report.raise_if_failed()` raises.

    Raises:
        BundleError, UsageError: not a whole bundle, or not of this checkpoint.
        CapabilityError: this machine cannot run the engine.
    """
    from r1v_export.pipeline.check import Questions, check_bundle

    return check_bundle(
        _folder(bundle),
        target,
        None if model is None else str(model),
        Questions(questions, (), max_new_tokens, gate),
        (),
        device,
        Progress(quiet=not show_progress),
        blocks=blocks,
        command="r1v_export.check, from Python",
    )


@build_extra.required()
def verify(bundle: Bundle | AnyPath, *, show_progress: bool = False) -> Manifest:
    """Recompute every hash of a bundle and check its graphs and documents; `r1v-export verify`.

    Raises:
        BundleError: a file is missing, extra, altered or a link, or contradicts the others.
        GraphError: a graph is not as the contract says.
    """
    from r1v_export.pipeline.verify import verify_bundle

    return verify_bundle(_folder(bundle), Progress(3, quiet=not show_progress))


def _folder(bundle: Bundle | AnyPath) -> Path:
    return bundle.folder if isinstance(bundle, Bundle) else Path(bundle)
