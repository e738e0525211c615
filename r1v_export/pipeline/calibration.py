"""Calibration as part of a build: which recipe, which samples, and the model that the quantized engines are compared
with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig
from r1v_export.count import Count
from r1v_export.errors import BundleError, InputError, UsageError
from r1v_export.manifest import hash_file
from r1v_export.pipeline.activation_memory import activation_memory_bytes
from r1v_export.pipeline.calibration_samples import calibration_examples
from r1v_export.pipeline.effort import default_recipe
from r1v_export.pipeline.kept_responses import KeptResponses
from r1v_export.pipeline.qweight_placement import copy_calibration, qweight_places
from r1v_export.progress import ProgressCallback
from r1v_export.quantization.apply.torch import apply
from r1v_export.quantization.apply.weight_check import require_own_scales
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.artifact.documents import RECIPE, STATS, read_recipe, read_stats
from r1v_export.quantization.artifact.documents import require_origin as require_artifact_origin
from r1v_export.quantization.artifact.qweight_places import placed_files
from r1v_export.quantization.calibration.activations import SAVED_BY_DEFAULT
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.dataset import CalibrationSet, Shard, prepare
from r1v_export.quantization.calibration.matmul_precision import choose_matmul
from r1v_export.quantization.calibration.plan import reads_samples
from r1v_export.quantization.calibration.raw_examples import RawExample, named_files
from r1v_export.quantization.calibration.shards import require_separable
from r1v_export.quantization.mixed_precision.budget import Budget
from r1v_export.quantization.recipe import Recipe, load
from r1v_export.reference.model import Model
from r1v_export.targets import registry

CALIBRATION = "calibration"
"""The calibration artifact's folder in a bundle."""


def chosen_recipe(config: BuildConfig) -> Recipe | None:
    """The recipe of a quantized build; None where nothing is quantized, and where a budget has yet to find one.

    Raises:
        UsageError: there is no such recipe, it is not one, it cannot be calibrated in shards that are asked for, the
            budget is not understood, or a finished calibration was made by another recipe.
        BundleError: the finished calibration cannot be read.
    """
    if not config.quantized:
        return None
    if config.budget is not None:
        Budget.parse(config.budget)
        return None
    if config.calibration.artifact is not None:
        return _recipe_of_artifact(Path(config.calibration.artifact), config)
    per_tensor = any(registry.get_target(target).fp8_per_tensor for target in config.targets)
    recipe = load(config.recipe or default_recipe(config, fp8_per_tensor=per_tensor))
    if config.calibration.shards > 1:
        require_separable(recipe, str(Count(config.calibration.shards, "shard")))
    return recipe


def _recipe_of_artifact(folder: Path, config: BuildConfig) -> Recipe:
    """A finished calibration's recipe, which must be the one that was asked for, if one was.

    The calibration must have read its images as the build will.
    """
    with given_calibration(folder):
        recipe, policy = read_recipe(folder), read_stats(folder).image_policy
    if config.recipe is not None and load(config.recipe) != recipe:
        raise UsageError(
            "This calibration was made by another recipe.",
            where=folder / RECIPE,
            expected=config.recipe,
            found=recipe.name,
            fix="omit --recipe to build by the calibration's own, or calibrate by this one",
        )
    if policy not in (None, config.image_policy):
        raise UsageError(
            "This calibration read its images by another policy.",
            where=folder / STATS,
            expected=f"image_policy {config.image_policy}",
            found=f"image_policy {policy}",
            fix=f"build with --image-policy {policy}, or calibrate again with --image-policy {config.image_policy}",
        )
    return recipe


@contextmanager
def given_calibration(folder: Path) -> Iterator[None]:
    """Errors of a calibration that `--calibrated` names say so: building again with --force does not mend it.

    Raises:
        BundleError: the folder is none of a calibration; or what is raised in the block, with another next step.
    """
    if not (folder / RECIPE).exists() and not (folder / STATS).exists():
        raise _no_calibration(folder)
    try:
        yield
    except BundleError as error:
        fix = (
            f"name another folder than --calibrated {folder}, or calibrate again: r1v-export calibrate MODEL -o FOLDER"
        )
        raise BundleError(error.what, where=error.where, expected=error.expected, found=error.found, fix=fix) from error


def _no_calibration(folder: Path) -> BundleError:
    within = folder / CALIBRATION
    is_folder, exists = folder.is_dir(), folder.exists()
    return BundleError(
        "This folder holds no calibration." if is_folder else "There is no calibration here.",
        where=folder,
        expected=f"a folder that r1v-export calibrate wrote, with {RECIPE} and {STATS}",
        found="neither of them" if is_folder else "a file" if exists else "no such folder",
        fix=f"pass the bundle's own: --calibrated {within}"
        if (within / RECIPE).exists()
        else "correct --calibrated, or calibrate: r1v-export calibrate MODEL -o FOLDER",
    )


def data_digest(data: str | None) -> str | None:
    """SHA-256 over a calibration set's files and the images elsewhere that its `.jsonl` names; None for the generated
    one.

    Raises:
        InputError: there is no such file or folder.
    """
    if data is None:
        return None
    path, digest = Path(data), hashlib.sha256()
    if not path.exists():
        raise InputError(
            "There is no such calibration set.",
            where=path,
            expected="a folder or a .jsonl file",
            found="no such path",
            fix="correct --calib, or omit it to calibrate on generated images",
        )
    folder = path if path.is_dir() else path.parent
    inside = {file for file in folder.rglob("*") if file.is_file()}
    hashed = [(file.relative_to(folder).as_posix(), file) for file in sorted(inside)]
    # What is missing or not a file is refused when the samples are read. Path.is_file raises where a name is too long.
    named = ((name, folder / name) for name in sorted(named_files(path)))
    hashed += [(name, file) for name, file in named if file not in inside and os.path.isfile(file)]  # noqa: PTH113
    for name, file in hashed:
        digest.update(name.encode() + b"\0" + hash_file(file).sha256.encode())
    return digest.hexdigest()


def finished_digest(artifact: str) -> str:
    """SHA-256 over the files of a finished calibration, wherever they lie.

    Raises:
        InputError, BundleError: there is none, or it is damaged.
    """
    digest = hashlib.sha256((data_digest(artifact) or "").encode())
    with given_calibration(Path(artifact)):
        placed = placed_files(Path(artifact))
    for path in placed:
        digest.update(hash_file(path).sha256.encode())
    return digest.hexdigest()


def calibration_set(
    config: BuildConfig, checkpoint: Checkpoint, recipe: Recipe | None, resume_folder: Path, shard: Shard | None = None
) -> CalibrationSet:
    """The samples that a model is calibrated on, with self-generated responses where they have no answer.

    Args:
        recipe: responses are not generated for one that reads weights alone; None where a budget has yet to find it.
        resume_folder: of the calibration; responses are kept next to it, in `responses_folder`.

    Raises:
        InputError: the calibration data cannot be used.
        CapabilityError: a package that it needs is not installed.
    """
    examples = calibration_examples(config, checkpoint)
    if recipe is not None and not reads_samples(recipe, checkpoint.spec):
        return prepare(examples, checkpoint, shard=shard, image_policy=config.image_policy)
    return prepared_set(examples, config, checkpoint, resume_folder, shard)


def responses_folder(resume_folder: Path) -> Path:
    """Where a calibration keeps the model's responses to prompts without an answer."""
    return resume_folder.with_name(f"{resume_folder.name}-responses")


def prepared_set(
    examples: Sequence[RawExample],
    config: BuildConfig,
    checkpoint: Checkpoint,
    resume_folder: Path,
    shard: Shard | None = None,
) -> CalibrationSet:
    """Samples of some examples, with self-generated responses where they have no answer, as `calibration_set`."""
    responses = KeptResponses(responses_folder(resume_folder), checkpoint, config)
    policy = config.image_policy
    return prepare(examples, checkpoint, shard=shard, generate_responses=responses, image_policy=policy)


def copy_finished(folder: Path, checkpoint: Checkpoint, out: Path) -> None:
    """Make the calibration that `--calibrated` names that in `out`.

    Raises:
        BundleError: it is damaged, or another checkpoint's.
    """
    with given_calibration(folder):
        Artifact.open(folder, checkpoint)
    copy_calibration(folder, out)


def calibration_options(
    config: BuildConfig, checkpoint: Checkpoint, resume_folder: Path | None, on_progress: ProgressCallback
) -> CalibrationOptions:
    """How a build's calibration is run."""
    return CalibrationOptions(
        device=config.device,
        matmul=choose_matmul(config.calibration.matmul_precision, checkpoint, config.device),
        activation_memory_bytes=activation_memory_bytes(config),
        saving=replace(SAVED_BY_DEFAULT, share=config.calibration.saved_share / config.calibration.shards),
        resume_folder=resume_folder,
        places=qweight_places(config),
        on_progress=on_progress,
    )


def open_artifact(folder: Path, checkpoint: Checkpoint) -> Artifact | None:
    """The calibration of the bundle in `folder`, None where it is not quantized."""
    if not (folder / CALIBRATION).is_dir():
        return None
    return Artifact.open(folder / CALIBRATION, checkpoint)


def require_origin(folder: Path, checkpoint: Checkpoint) -> None:
    """Require that the calibration that `--calibrated` names is of this checkpoint.

    Raises:
        BundleError: the calibration in `folder` cannot be read, or is another checkpoint's.
    """
    with given_calibration(folder):
        require_artifact_origin(folder, checkpoint)


def calibration_warnings(bundle: Path) -> tuple[str, ...]:
    """The warnings of a bundle's calibration."""
    return read_stats(bundle / CALIBRATION).warnings


def fake_quantize(model: Model, artifact: Artifact) -> None:
    """Put the artifact's linears in the place of the model's own: what quantized engines must compute.

    Raises:
        ParityError: a scale of the artifact cannot be that of the weight or input that it is for.
    """
    require_own_scales(model, artifact)
    overrides = {name: read() for name, read in artifact.overrides.items()}
    apply(model, dict(artifact.linears()), overrides, cache_scales=artifact.cache_scales)
