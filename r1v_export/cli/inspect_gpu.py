"""`r1v-export inspect MODEL --roofline GPU`: a checkpoint sized for GPUs before anything is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from r1v_export.cli.output import print_json, table, wrapped
from r1v_export.count import Count
from r1v_export.errors import UsageError

if TYPE_CHECKING:
    from r1v_export.checkpoint.checkpoint import Checkpoint
    from r1v_export.config import Precision
    from r1v_export.quantization.recipe import Recipe


def show_gpu_fit(
    model: str,
    device_name: str,
    format_: str,
    *,
    revision: str | None,
    offline: bool,
    precision: Precision | None,
    recipe: str | None,
    tp: int | None,
    pp: int | None,
    batch: int | None,
    tiles: int | None,
    prompt: int | None,
    max_new_tokens: int | None,
) -> None:
    """Print what of a checkpoint's engine fits into GPUs, and how fast it could answer. Reads no weight.

    Raises:
        UsageError: no such GPU or recipe, precision and recipe differ, GPUs cannot share the model, or the requests do
            not fit into its context.
        CheckpointError: the checkpoint is damaged.
    """
    from r1v_export.checkpoint.checkpoint import Checkpoint
    from r1v_export.config import COMPUTE_OF
    from r1v_export.parallel import Parallel
    from r1v_export.quantization.recipe import resolve
    from r1v_export.roofline.devices import device
    from r1v_export.roofline.gpu_fit import facts, requests
    from r1v_export.roofline.gpu_model import GpuModel

    gpu, checkpoint = device(device_name), Checkpoint.open(model, revision=revision, offline=offline)
    spec, chosen = checkpoint.spec, _recipe(checkpoint, precision, recipe)
    stored = "float16" if chosen is not None and spec.dtype == "float32" else spec.dtype
    sized = GpuModel(
        spec,
        stored if chosen is not None or precision is None else COMPUTE_OF[precision],
        resolve(chosen, spec) if chosen is not None else {},
        chosen.kv_cache if chosen is not None else None,
        Parallel(tp or 1, pp or 1),
    )
    sized.check()
    asked = requests(spec, prompt, max_new_tokens, tiles, batch or 1)
    found = {
        "what": "checkpoint sized for a GPU",
        "name": checkpoint.source.name,
        "recipe": chosen.name if chosen is not None else None,
        **facts(sized, asked, gpu),
    }
    if format_ == "json":
        print_json(found)
    else:
        click.echo(_as_text(found))


def _recipe(checkpoint: Checkpoint, precision: Precision | None, recipe: str | None) -> Recipe | None:
    """How the engine's linears are quantized; None where none is."""
    from r1v_export.config import COMPUTE_OF
    from r1v_export.pipeline.precision import require_precision
    from r1v_export.quantization.calibration.imported import imported_recipe
    from r1v_export.quantization.recipe import PRESETS, load

    if checkpoint.quantized is not None:
        if precision is not None or recipe is not None:
            raise UsageError(
                f"The checkpoint is quantized already ({checkpoint.quantized.format.method}): its quantized values are "
                "kept.",
                where=checkpoint.source.name,
                found=f"--recipe {recipe}" if recipe else f"--precision {precision}",
                fix="omit it, or name the original checkpoint",
            )
        return imported_recipe(checkpoint)
    if recipe is None:
        return None if precision is None or precision in COMPUTE_OF else load(PRESETS[precision])
    chosen = load(recipe)
    if precision is not None:
        require_precision(precision, chosen, f"--recipe {recipe}")
    return chosen


def _as_text(found: dict[str, Any]) -> str:
    parallel, asked, memory = found["parallel"], found["requests"], found["memory_per_gpu"]
    gpus = parallel["tp"] * parallel["pp"]
    recipe = f"recipe {found['recipe']}, " if found["recipe"] else ""
    engine = (
        f"{found['name']}: {recipe}{found['compute']}; {Count(gpus, 'GPU')} (tp {parallel['tp']}, pp {parallel['pp']})"
    )
    load = (
        f"{Count(asked['batch'], 'request')} at a time, each "
        f"{Count(asked['prompt'], 'prompt token')} ({Count(asked['tiles'], 'tile')}) "
        f"and {Count(asked['new_tokens'], 'new one')}"
    )
    title = f"{wrapped(engine)}\n{wrapped(load)}"
    return "\n\n".join((title, _memory_text(found, memory), _fits_text(found), _steps_text(found)))


def _memory_text(found: dict[str, Any], memory: dict[str, Any]) -> str:
    from r1v_export.progress import size

    asked, per_token = found["requests"], size(memory["cache_bytes_per_token"])
    cache = f"the cache: {asked['batch']} x {Count(asked['context'], 'token')} of {per_token} ({found['kv_cache']})"
    rows = [
        ("weights, vision tower and projector", size(memory["vision_weight_bytes"])),
        ("weights, language model", size(memory["language_weight_bytes"])),
        ("key-value cache", size(memory["cache_bytes"])),
        ("activations, workspace (estimated)", size(memory["workspace_bytes"])),
        ("all", size(memory["total_bytes"])),
    ]
    return "on the fullest GPU\n" + table(rows) + "\n" + wrapped(cache)


def _fits_text(found: dict[str, Any]) -> str:
    from r1v_export.progress import size

    asked = found["requests"]
    rows = [
        (
            name,
            size(row["usable_bytes"]),
            "yes" if row["fits"] else "no",
            row["largest_batch"] or "-",
            row["largest_context"] or "-",
        )
        for name, row in found["fits"].items()
    ]
    title = f"largest batch of {Count(asked['context'], 'token')} each, longest context at batch {asked['batch']}"
    return wrapped(title) + "\n" + table(rows, ("GPU", "usable", "fits", "batch", "context"))


def _steps_text(found: dict[str, Any]) -> str:
    from r1v_export.roofline.report import amount, milliseconds

    device = found["device"]
    rows = [
        (
            name.replace(" token at ", " at "),  # 60 columns hold it then, also for a long context
            amount(row["flops"]),
            amount(row["weight_bytes"] + row["activation_bytes"] + row["cache_bytes"]),
            milliseconds(row["seconds"]),
            row["bound"],
        )
        for name, row in found["steps"].items()
    ]
    decode_s = list(found["steps"].values())[-1]["seconds"]
    lines = [
        wrapped(
            f"least time on each GPU at the peak rates of {device['name']} ({device['source']}), communication between "
            "GPUs not counted"
        ),
        table(rows, ("step", "FLOP", "bytes", "ms", "bound by")),
        f"at most {found['requests']['batch'] / decode_s:,.0f} tokens/s over all requests",
    ]
    missing = sorted({kind for row in found["steps"].values() for kind in row["arithmetic"]} - set(device["tflops"]))
    if missing:
        lacks = f"{device['name']} has no matrix units for {', '.join(missing)}: counted at the rate of float16"
        lines.append(wrapped(lacks))
    return "\n".join(lines)
