"""`r1v-export build`: checkpoint -> bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1v_export.cli.output import (
    TargetOption,
    WholeNumber,
    calibration_options,
    common_options,
    gate_option,
    image_policy_option,
    print_json,
    print_summary,
    ray_option,
    refuse_given,
    shards_option,
    shown_progress,
    table,
)
from r1v_export.cli.paths import OptionPath
from r1v_export.cli.termination import sigterm_as_error
from r1v_export.cli.threads import threads_option
from r1v_export.count import Count
from r1v_export.targets.entry_points import DEFAULT

if TYPE_CHECKING:
    from r1v_export.config import BuildConfig
    from r1v_export.pipeline.build import Built, PlannedStage

PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
COUNT = WholeNumber(min=1)
DEFAULT_OUT = Path("out")
_LARGE_BYTES = 10**9
"""Of a plan, from which on the disk is worth a sentence."""
_OF_CALIBRATION = ("calib", "samples", "effort", "matmul_precision", "activation_memory", "saved_share", "shards")


@click.command(short_help="Turn a checkpoint into a bundle of engines.")
@click.argument("model", required=False)
@click.option("--precision", type=click.Choice(PRECISIONS), help="What the engines compute in. [default: fp32]")
@click.option(
    "--target",
    "targets",
    cls=TargetOption,
    multiple=True,
    help=f"Engine to build; repeat for several. [default: {DEFAULT}]",
)
@click.option(
    "-o",
    "--output",
    "out",
    type=OptionPath(),
    default=DEFAULT_OUT,
    show_default=True,
    help="Folder of the bundle.",
)
@click.option(
    "--config",
    "config_file",
    type=OptionPath(),
    help="A build file, such as a bundle's build.yaml; options win over it.",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="How to quantize: a name of `recipes list`, or a YAML file. [default: the precision's]",
)
@click.option(
    "--calib",
    type=OptionPath(str),
    metavar="PATH",
    help="Images and prompts to calibrate on: folder or .jsonl. [default: generated]",
)
@calibration_options
@click.option(
    "--budget", metavar="kl=X|size=SIZE", help="Choose each module's precision within this, such as size=20GB."
)
@click.option(
    "--calibrated",
    type=OptionPath(str),
    metavar="PATH",
    help="A finished calibration (`r1v-export calibrate`) to build with.",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
@click.option("--offline", is_flag=True, help="Use the hub's local cache only.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where engines run and are checked. [default: cpu]")
@image_policy_option
@click.option("--sm", metavar="89,120", help="Compute capabilities to build for, or `current`, where a target asks.")
@click.option("--tp", type=COUNT, help="Tensor parallelism: GPUs that share each layer. [default: 1]")
@click.option("--pp", type=COUNT, help="Pipeline parallelism: groups of such GPUs. [default: 1]")
@click.option(
    "--int4-inputs",
    type=click.Choice(["int8", "exact"]),
    help="Inputs of 4-bit weights: in 8 bits (faster), or not rounded. [default: int8 on a CPU]",
)
@click.option("--link-weights", is_flag=True, help="Hard-link weight files of the checkpoint that stay as they are.")
@click.option("--no-parity", is_flag=True, help="Skip the parity gate.")
@gate_option
@click.option("--dry-run", is_flag=True, help="Show stages, sizes and time; change nothing.")
@click.option("--print-config", is_flag=True, help="Print these options as a build file for --config; build nothing.")
@click.option("--force", is_flag=True, help="Run every stage, also those that are done.")
@shards_option
@ray_option
@threads_option
@common_options
@sigterm_as_error()
def command(
    model: str | None,
    precision: str | None,
    targets: tuple[str, ...],
    out: Path,
    config_file: Path | None,
    recipe: str | None,
    calib: str | None,
    samples: int | None,
    effort: str | None,
    matmul_precision: str | None,
    activation_memory: str | None,
    saved_share: float | None,
    budget: str | None,
    calibrated: str | None,
    revision: str | None,
    offline: bool,
    device: str | None,
    image_policy: str | None,
    sm: str | None,
    tp: int | None,
    pp: int | None,
    int4_inputs: str | None,
    link_weights: bool,
    no_parity: bool,
    gate: str | None,
    dry_run: bool,
    print_config: bool,
    force: bool,
    shards: int | None,
    ray: str | None,
    format_: str,
) -> None:
    """Turn MODEL (hub id, folder or GGUF file; the small one in the package if omitted) into a bundle.

    If interrupted at any moment, the same command resumes.
    """
    from r1v_export.build_file import load_config
    from r1v_export.pipeline.build import build, plan
    from r1v_export.pipeline.precision import with_precision
    from r1v_export.targets.registry import resolved

    calibration = {
        "data": calib,
        "samples": samples,
        "effort": effort,
        "matmul_precision": matmul_precision,
        "activation_memory": activation_memory,
        "saved_share": saved_share,
        "artifact": calibrated,
        "shards": shards,
    }
    options: dict[str, Any] = {
        "model": model,
        "precision": precision,
        "targets": targets or None,
        "recipe": recipe,
        "budget": budget,
        "calibration": {name: value for name, value in calibration.items() if value not in (None, "")} or None,
        "revision": revision,
        "device": device,
        "image_policy": image_policy,
        "link_weights": link_weights or None,
        "parity": {**({"enabled": False} if no_parity else {}), **({"gate": gate} if gate else {})} or None,
    }
    config = load_config(config_file, {name: value for name, value in options.items() if value is not None})
    _refuse_without_effect(config)
    config = with_precision(config)
    _refuse_calibration_of_floats(config)
    config = _with_target_options(config, {"sm": sm, "tp": tp, "pp": pp, "int4_inputs": int4_inputs})
    if print_config:
        _print_config(resolved(config), format_)
        return
    if dry_run:
        _print_plan(plan(config, out, force=force, offline=offline, ray=ray), out, format_, ray)
        return
    progress = shown_progress(format_)
    _print_built(build(config, out, force=force, offline=offline, progress=progress, ray=ray), format_)


def _refuse_without_effect(config: BuildConfig) -> None:
    """Refuse options that were typed and that others, or the build file, leave nothing to do."""
    context = click.get_current_context()
    if context.params["print_config"]:
        refuse_given(context, ("dry_run", "force", "ray"), "with --print-config, which builds nothing", "omit it")
    if not config.parity.enabled:
        refuse_given(context, ("gate",), "without the parity gate", "omit it, or let the gate run")
    if config.calibration.artifact is not None:
        why = "with --calibrated, which is a finished calibration"
        refuse_given(context, _OF_CALIBRATION, why, "omit it, or omit --calibrated")


def _refuse_calibration_of_floats(config: BuildConfig) -> None:
    """Refuse options of a calibration that were typed where nothing is quantized.

    Args:
        config: of `with_precision`.
    """
    if not config.quantized:
        asked = "precision" in config.model_fields_set
        implied = "without --precision: neither fp32 nor a quantized checkpoint needs a calibration"
        why = f"in {config.precision}, which needs no calibration" if asked else implied
        fix = "omit it, or choose a --precision of 8 or 4 bits"
        refuse_given(click.get_current_context(), _OF_CALIBRATION, why, fix)


def _with_target_options(config: BuildConfig, typed: Mapping[str, Any]) -> BuildConfig:
    """The config with options of targets, where they were typed."""
    from r1v_export.targets import registry

    if "precision" in config.model_fields_set and config.precision != "int4":
        why = f"in {config.precision}, which has no 4-bit weights"
        refuse_given(click.get_current_context(), ("int4_inputs",), why, "omit it")
    for field, text in typed.items():
        if text is not None:
            value = _compute_capabilities(text) if field == "sm" else text
            config = registry.with_option(config, field, value, f"--{field.replace('_', '-')} {text}")
    return config


def _compute_capabilities(text: str) -> str | list[int]:
    """`89,120` or `current`, as the config has it."""
    if text == "current":
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter("compute capabilities are numbers such as 89,120", param_hint="--sm") from error


def _print_config(config: BuildConfig, format_: str) -> None:
    from r1v_export.build_file import as_yaml, config_fields

    fields = config_fields(config)
    if format_ == "json":
        print_json(fields)
    else:
        click.echo(as_yaml(fields), nl=False)


def _print_plan(stages: list[PlannedStage], out: Path, format_: str, ray: str | None) -> None:
    from dataclasses import asdict

    import psutil

    from r1v_export.cpus import thread_count
    from r1v_export.pipeline.estimate import disk_bytes, free_bytes
    from r1v_export.progress import duration, size

    disk, free = max(disk_bytes([(stage.size_bytes, stage.scratch_bytes) for stage in stages])), free_bytes(out)
    size_bytes, seconds = sum(stage.size_bytes for stage in stages), sum(stage.seconds for stage in stages)
    obstacle = next((stage.obstacle for stage in stages if stage.obstacle), None)
    threads, load = thread_count().count, round(psutil.getloadavg()[0], 2)
    if format_ == "json":
        rows = [{**asdict(stage), "obstacle": stage.obstacle.as_dict() if stage.obstacle else None} for stage in stages]
        plan = {"stages": rows, "size_bytes": size_bytes, "disk_bytes": disk, "free_bytes": free, "seconds": seconds}
        print_json({**plan, "threads": threads, "load": load})
        if obstacle:
            click.get_current_context().exit(obstacle.exit_code)
        return
    most = max((stage.memory_bytes for stage in stages), default=0)  # one stage runs after the other
    all_stages = ("all", "", size(size_bytes), size(most) if most else "-", duration(seconds))
    header = ("stage", "", "writes", "memory", "about")
    click.echo(table([*map(_plan_row, stages), all_stages], header))
    if disk >= _LARGE_BYTES:
        print_summary(f"While it runs, up to {size(disk)} of disk are taken; {size(free)} are free there.")
    if seconds:
        print_summary(_whose_times(threads, load, ray))
    for stage in stages:
        if stage.note:
            print_summary(f"{stage.name}: {stage.note}")
        if stage.obstacle and stage.obstacle is not obstacle:
            needs, found, fix = stage.obstacle.expected, stage.obstacle.found, stage.obstacle.fix
            print_summary(f"{stage.name}: {stage.obstacle.what} Needed: {needs}; found: {found}; fix: {fix}.")
    if obstacle:
        raise obstacle


def _whose_times(threads: int, load: float, ray: str | None) -> str:
    """For what a plan's times hold. They follow from CPU time: what else the machine does counts for nothing there."""
    times = f"Times are for {Count(threads, 'thread')} on CPUs"
    if ray is not None:
        return f"{times} of this machine that do nothing else, one stage after the other."
    cpus = os.cpu_count() or 1
    if load + threads <= cpus + 1:
        return f"{times} that do nothing else."
    busy = f"the load was {load:.1f} in the last minute, on {Count(cpus, 'CPU')}"
    return f"{times} that do nothing else; {busy}, so that a build takes longer now."


def _plan_row(stage: PlannedStage) -> tuple[str, ...]:
    from r1v_export.progress import duration, size

    if stage.done:
        return (stage.name, "done", "", "", "")
    memory = size(stage.memory_bytes) if stage.memory_bytes else "-"
    possible = "impossible here" if stage.obstacle else ""
    # Of a gate that fits neither way, no time is known.
    about = duration(stage.seconds) if stage.seconds else "-"
    writes = size(stage.size_bytes) if stage.size_bytes else "-"  # Reports and documents are not estimated.
    return (stage.name, possible, writes, memory, about)


def _print_built(built: Built, format_: str) -> None:
    from r1v_export.files import linked_bytes
    from r1v_export.progress import size

    if format_ == "json":
        print_json(
            {
                "bundle": str(built.out),
                "up_to_date": not built.ran,
                "ran": list(built.ran),
                "size_bytes": built.size_bytes,
                "parity": built.manifest.parity,
            }
        )
    elif not built.ran:
        click.echo(f"{built.out}: up to date")
    else:
        linked = linked_bytes(built.out, {path: entry.size for path, entry in built.manifest.files.items()})
        links = f", {size(linked)} of them hard links" if linked else ""
        files = f"{Count(len(built.manifest.files), 'file')}, {size(built.size_bytes)}{links}"
        print_summary(f"{built.out}: {files}; {_verdict(built)}")


def _verdict(built: Built) -> str:
    """One sentence on the parity gates: `parity with PyTorch holds`, and of which targets nothing is known."""
    from r1v_export.manifest import PASSED

    parity = built.manifest.parity
    unchecked = [f"{target}: {why}" for target, why in parity.items() if why != PASSED]
    if not unchecked:
        return "parity with PyTorch holds"
    passed = [target for target in parity if parity[target] == PASSED]
    holds = [f"parity with PyTorch holds for {', '.join(passed)}"] if passed else []
    return "; ".join([*holds, f"parity was not checked for {'; '.join(unchecked)}"])
