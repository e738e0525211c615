"""From a bundle's TensorRT-LLM checkpoint to an engine. Engines belong to one kind of GPU and one version, so they lie
next to a bundle, not in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from r1v_export.bundle import ENGINES, Bundle
from r1v_export.errors import BundleError, UsageError
from r1v_export.files import read_regular_bytes, require_writable
from r1v_export.progress import Progress, size
from r1v_export.strict import load_json
from r1v_export.targets.tensorrt_llm.build import trtllm_build
from r1v_export.targets.tensorrt_llm.build.command import EngineSizes, build_arguments, container_recipe, engine_sizes
from r1v_export.targets.tensorrt_llm.checkpoint.reader import Config, read_config
from r1v_export.targets.tensorrt_llm.config import TensorRTLLMConfig

TARGET = "tensorrt-llm"
CHECKPOINT = "checkpoint"
"""Folder in the target's of a bundle with what `trtllm-build` reads."""
ORIGIN = "r1v_export.json"
"""File of an engine's folder with the hashes of the checkpoint that it was built from."""


@dataclass(frozen=True)
class EnginePlan:
    """What will be run."""

    out: Path
    config: Config
    sizes: EngineSizes
    arguments: list[str]
    """The words of the command."""
    recipe: str
    """Shell lines that run it in a container."""
    origin: dict[str, str]
    """Hash of each file of the checkpoint."""

    @property
    def ranks(self) -> int:
        """Number of GPUs of the engine."""
        return self.config.mapping.world_size


def plan_engine(bundle: Path, out: Path, workers: int | None = None) -> EnginePlan:
    """The command for a bundle; nothing is run.

    Raises:
        BundleError: the bundle is not whole.
        UsageError: it has no TensorRT-LLM checkpoint, or the sizes of its build's config do not fit the model.
    """
    opened = Bundle.open(bundle)
    checkpoint = bundle.resolve() / ENGINES / opened.target(TARGET) / CHECKPOINT
    config = read_config(checkpoint)
    options = opened.config.options(TARGET, TensorRTLLMConfig)
    sizes = engine_sizes(options, opened.spec)
    ranks = config.mapping.world_size
    arguments = build_arguments(checkpoint, out.resolve(), config, sizes, workers or ranks)
    recipe = container_recipe(bundle.resolve(), out.resolve(), arguments)
    place = f"{ENGINES}/{TARGET}/{CHECKPOINT}/"
    hashes = {path: entry.sha256 for path, entry in opened.manifest.files.items() if path.startswith(place)}
    return EnginePlan(out, config, sizes, arguments, recipe, hashes)


def build_engine(plan: EnginePlan, program: Path | None, progress: Progress) -> None:
    """Run the command and compare the engine's own config with it.

    Raises:
        CapabilityError: no supported trtllm-build here; says how to build elsewhere.
        UsageError: the output folder is not empty.
        GraphError: trtllm-build fails.
        BundleError: the engine is not what was asked for.
    """
    if plan.out.exists() and (not plan.out.is_dir() or any(plan.out.iterdir())):
        raise UsageError("The output folder is not empty.", where=plan.out, fix="name a new one with -o")
    require_writable(plan.out, "name another one with -o")
    found = trtllm_build.find_program(program, plan.recipe)
    plan.out.mkdir(parents=True, exist_ok=True)
    with progress.stage("trtllm-build") as task:
        trtllm_build.run(found, plan.arguments, plan.ranks, task.report)
        trtllm_build.check_engine(plan.out, plan.config, plan.sizes)
        (plan.out / ORIGIN).write_text(json.dumps(plan.origin, indent=2) + "\n", encoding="utf-8")
        task.outcome = size(sum(path.stat().st_size for path in plan.out.iterdir()))


def require_built(plan: EnginePlan) -> None:
    """Compare a finished engine with the bundle. One that was not built by `build_engine` does not record its
    weights; then only its sizes and formats are checked.

    Raises:
        BundleError: files are missing, or the engine is of another checkpoint, or of other sizes or formats.
    """
    trtllm_build.check_engine(plan.out, plan.config, plan.sizes)
    path = plan.out / ORIGIN
    what = "What an engine was built from cannot be read"
    try:
        text = read_regular_bytes(path) if path.is_file() else None
    except OSError as error:
        raise BundleError(f"{what}.", where=path, found=error) from error
    found = plan.origin if text is None else load_json(text, BundleError, what, where=path)
    if found != plan.origin:
        raise BundleError(
            "The engine was built from another checkpoint.",
            where=plan.out,
            expected="the checkpoint in the bundle",
            fix="build an engine from this bundle: r1v-export engine",
        )
