"""`r1v-export calibrate`: calibrate without building a bundle, on one machine or on several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1v_export.cli.output import (
    calibration_options,
    common_options,
    device_option,
    image_policy_option,
    print_json,
    print_summary,
    ray_option,
    shards_option,
    shown_progress,
)
from r1v_export.cli.paths import OptionPath
from r1v_export.cli.termination import sigterm_as_error
from r1v_export.cli.threads import threads_option
from r1v_export.count import Count

if TYPE_CHECKING:
    from r1v_export.config import BuildConfig, Device
    from r1v_export.pipeline.calibrate import Calibrated


@click.command(short_help="Calibrate apart from a build, in one run or in shards.")
@click.argument("model", required=False)
@click.option("--precision", type=click.Choice(["fp8", "int8", "int4"]), help="Calibrate by this precision's recipe.")
@click.option(
    "--recipe", metavar="NAME|FILE", help="Calibrate by this recipe: a name of `recipes list`, or a YAML file."
)
@click.option("--budget", metavar="kl=X|size=SIZE", help="Find a recipe within this, such as size=20GB.")
@click.option(
    "--calib",
    type=OptionPath(str),
    metavar="PATH",
    help="Images and prompts to calibrate on: folder or .jsonl. [default: generated]",
)
@calibration_options
@image_policy_option
@click.option(
    "--shard", metavar="I/N", help="Only collect statistics of the I-th of N parts of the samples, for --merge."
)
@click.option(
    "--merge",
    "merged",
    multiple=True,
    type=OptionPath(),
    help="A folder that holds shards, or a shard; repeat for several.",
)
@click.option("-o", "--output", "out", type=OptionPath(), required=True, help="Folder of the calibration, or shard.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
@click.option("--offline", is_flag=True, help="Use the hub's local cache only.")
@device_option
@shards_option
@ray_option
@threads_option
@common_options
@sigterm_as_error()
def command(
    model: str | None,
    precision: str | None,
    recipe: str | None,
    budget: str | None,
    calib: str | None,
    samples: int | None,
    effort: str | None,
    matmul_precision: str | None,
    activation_memory: str | None,
    saved_share: float | None,
    image_policy: str | None,
    shard: str | None,
    merged: tuple[Path, ...],
    out: Path,
    revision: str | None,
    offline: bool,
    device: Device,
    shards: int | None,
    ray: str | None,
    format_: str,
) -> None:
    """Calibrate MODEL (hub id or folder; the small one in the package if omitted), for `build --calibrated`.

    After an interruption, the same command continues where it stopped. On several machines: each runs one --shard,
    then one of them --merges the shards; or --shards N and --ray ADDRESS, and a Ray cluster does that.
    """
    from r1v_export.files import require_writable
    from r1v_export.pipeline import calibrate
    from r1v_export.quantization.calibration.dataset import Shard

    how = {
        "--precision": precision,
        "--recipe": recipe,
        "--budget": budget,
        "--calib": calib,
        "--samples": samples,
        "--effort": effort,
        "--matmul-precision": matmul_precision,
        "--activation-memory": activation_memory,
        "--saved-share": saved_share,
        "--image-policy": image_policy,
        "--shard": shard,
        "--shards": shards,
    }
    _require_one_way({**how, "--ray": ray}, merging=bool(merged))
    _require_shards_for(ray, shard, shards)
    require_writable(out, "choose another one with -o FOLDER")
    config = _config({"model": model, "revision": revision, "device": device}, how)
    progress = shown_progress(format_, 1)
    if merged:
        done = calibrate.merge_shards(config, merged, out, progress, offline=offline)
    elif shard is not None:
        done = calibrate.collect_shard(config, Shard.parse(shard), out, progress, offline=offline)
    else:
        done = calibrate.calibrate_alone(config, out, progress, offline=offline, ray=ray)
    _print(done, format_)


def _require_one_way(how: dict[str, Any], merging: bool) -> None:
    from r1v_export.errors import UsageError

    given = [option for option, value in how.items() if value is not None]
    if merging and given:
        raise UsageError(
            "Cannot combine --merge with other settings; the shards hold them, and they are merged on this machine.",
            expected="--merge without other settings",
            found=", ".join(given),
            fix="omit these options",
        )
    if not merging and not {"--precision", "--recipe", "--budget"} & set(given):
        raise UsageError(
            "Pass --precision, --recipe or --budget.",
            fix="--precision fp8, for example",
        )


def _require_shards_for(ray: str | None, shard: str | None, shards: int | None) -> None:
    from r1v_export.errors import UsageError

    for option, value in (("--shards", shards), ("--ray", ray)):
        if shard is not None and value is not None:
            raise UsageError(
                f"Cannot combine --shard and {option}: --shard runs one part, on this machine.",
                expected="--shard I/N, or --shards N for all parts, with --ray ADDRESS on a cluster",
                found=f"--shard {shard} {option} {value}",
                fix=f"omit {option}, or pass --shards N in place of --shard",
            )
    if ray is not None and (shards is None or shards == 1):
        raise UsageError(
            "A calibration runs on a Ray cluster in shards.",
            expected="--shards N, with N of 2 or more",
            found=f"--ray {ray}" + ("" if shards is None else f" --shards {shards}"),
            fix="pass as many shards as there are workers, or a multiple of it",
        )


def _config(model: dict[str, Any], how: dict[str, Any]) -> BuildConfig:
    """The build's configuration that these options stand for."""
    from r1v_export.build_file import load_config

    calibration = {
        "data": how["--calib"],
        "samples": how["--samples"],
        "effort": how["--effort"],
        "matmul_precision": how["--matmul-precision"],
        "activation_memory": how["--activation-memory"],
        "saved_share": how["--saved-share"],
        "shards": how["--shards"],
    }
    fields = {
        **model,
        "precision": how["--precision"],
        "recipe": how["--recipe"],
        "budget": how["--budget"],
        "image_policy": how["--image-policy"],
        "calibration": {name: value for name, value in calibration.items() if value is not None},
    }
    return load_config(None, {name: value for name, value in fields.items() if value is not None})


def _print(done: Calibrated, format_: str) -> None:
    from dataclasses import asdict

    samples = Count(done.samples, "sample")
    again = "up to date, " if done.up_to_date else ""
    if format_ == "json":
        print_json({**asdict(done), "out": str(done.out), "warnings": list(done.warnings)})
    elif done.shard is not None:
        print_summary(f"{done.out}: {again}shard {done.shard}, {samples}, for recipe {done.recipe}")
    else:
        linears = Count(done.linears, "linear")
        print_summary(f"{done.out}: {again}{linears} by recipe {done.recipe}, from {samples}")
