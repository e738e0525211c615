"""`r1v-export inspect`: what a checkpoint or a bundle is, without loading it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1v_export.cli.build import PRECISIONS
from r1v_export.cli.output import (
    TargetOption,
    WholeNumber,
    common_options,
    print_json,
    refuse_given,
    table,
    wrapped,
    wrapped_table,
)
from r1v_export.cli.paths import OptionPath
from r1v_export.count import Count
from r1v_export.errors import UsageError
from r1v_export.targets.entry_points import DESCRIBED

if TYPE_CHECKING:
    from r1v_export.checkpoint.quantized.quantized_linears import Quantized
    from r1v_export.model_spec import ModelSpec

_COUNT = WholeNumber(min=1)


@click.command(short_help="Show what a checkpoint, bundle or engine is.")
@click.argument("model")
@click.option(
    "--target",
    cls=TargetOption,
    values=lambda: DESCRIBED,
    help="Show this engine of a bundle: its layers, types and sizes.",
)
@click.option(
    "--roofline",
    "device_name",
    metavar="GPU",
    help="A GPU, such as H100: least time of each step there; of a checkpoint also what fits.",
)
@click.option(
    "--report",
    type=OptionPath(),
    help="With --roofline of a bundle: also write an HTML page for all GPUs.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Precision of the engine that is sized. [default: the checkpoint's]",
)
@click.option("--recipe", metavar="NAME|FILE", help="Recipe of the engine that is sized. [default: the precision's]")
@click.option("--tp", type=_COUNT, help="Tensor parallelism: GPUs that share each layer. [default: 1]")
@click.option(
    "--pp", type=_COUNT, help="Pipeline parallelism: groups of such GPUs, each with a part of the layers. [default: 1]"
)
@click.option("--batch", type=_COUNT, help="Requests at a time. [default: 1]")
@click.option("--tiles", type=WholeNumber(min=0), help="Tiles of a request's images. [default: one image's most]")
@click.option("--prompt", type=_COUNT, help="Tokens of a prompt with its images. [default: tiles and a question]")
@click.option("--max-new-tokens", type=WholeNumber(min=0), help="Tokens of an answer. [default: 1024]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
@click.option("--offline", is_flag=True, help="Use the hub's local cache only.")
@common_options
def command(
    model: str,
    target: str | None,
    device_name: str | None,
    report: Path | None,
    revision: str | None,
    offline: bool,
    format_: str,
    **sizing: Any,
) -> None:
    """Show what MODEL is: a checkpoint (hub id or folder), a bundle, or one engine of it.

    With --roofline, a bundle's graphs are counted, and a checkpoint is sized before anything is built: weights, cache
    and workspace per GPU, the largest batch and context that fit, and the least time of each step. The options from
    --precision to --max-new-tokens say for which engine and requests.
    """
    from r1v_export.cli import inspect_engine, inspect_gpu
    from r1v_export.manifest import MANIFEST

    context = click.get_current_context()
    is_bundle = Path(model, MANIFEST).is_file()
    _require_roofline(report, device_name, is_bundle)
    if device_name is None or is_bundle:
        why = "for a bundle, whose graphs say it" if is_bundle else "without --roofline GPU"
        refuse_given(context, sizing, why, "omit it, or name a checkpoint and --roofline GPU")
    if is_bundle:
        refuse_given(context, ("revision", "offline"), "for a bundle, which is a folder", "omit it, or name a hub id")
    if device_name is not None and is_bundle:
        refuse_given(context, ("target",), "with --roofline, which counts the bundle's graphs", "omit one of the two")
        inspect_engine.show_roofline(Path(model), device_name, report, format_)
        return
    if device_name is not None:
        refuse_given(context, ("target",), "for a checkpoint", "omit it, or name a bundle")
        inspect_gpu.show_gpu_fit(model, device_name, format_, revision=revision, offline=offline, **sizing)
        return
    if target is not None:
        inspect_engine.show_engine(Path(model), target, format_)
        return
    facts = _bundle_facts(Path(model)) if is_bundle else _checkpoint_facts(model, revision, offline)
    if format_ == "json":
        print_json(facts)
    else:
        click.echo(_as_text(facts))


def _require_roofline(report: Path | None, device_name: str | None, is_bundle: bool) -> None:
    """
    Raises:
        UsageError: a page is wanted of what has none.
    """
    if report is not None and (device_name is None or not is_bundle):
        raise UsageError(
            "A page shows the roofline of a bundle, and nothing else.",
            where=f"--report {report}",
            expected="a bundle and --roofline GPU",
            found=f"--roofline {device_name} of a checkpoint" if device_name else "no --roofline",
            fix="name a bundle and --roofline GPU, or omit --report",
        )


def _checkpoint_facts(model: str, revision: str | None, offline: bool) -> dict[str, Any]:
    from r1v_export.checkpoint.checkpoint import Checkpoint
    from r1v_export.manifest import MANIFEST

    checkpoint = Checkpoint.open(model, revision=revision, offline=offline)
    files = {path.name: path.stat().st_size for path in (*checkpoint.files(), *checkpoint.auxiliary_files())}
    return {
        "what": "checkpoint",
        "name": checkpoint.source.name,
        "kind": checkpoint.source.kind,
        "revision": checkpoint.source.revision,
        **({"quantized": _quantized(checkpoint.quantized)} if checkpoint.quantized else {}),
        "notes": list(checkpoint.notes),
        **_model_facts(checkpoint.spec),
        "files": {name: size for name, size in files.items() if name != MANIFEST},
    }


def _quantized(quantized: Quantized) -> str:
    """The format, and how many linears are stored in which way."""
    counts = Counter(linear.layout.name for linear in quantized.linears.values())
    ways = ", ".join(f"{Count(count, 'linear')} {name}" for name, count in counts.items())
    return f"{quantized.format.method}: {ways}" + (", FP8 key-value cache" if quantized.cache_scales else "")


def _bundle_facts(folder: Path) -> dict[str, Any]:
    from r1v_export.bundle import Bundle

    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    return {
        "what": "bundle",
        "name": manifest.source.name,
        "kind": manifest.source.kind,
        "revision": manifest.source.revision,
        **_model_facts(bundle.spec),
        "precision": manifest.precision,
        "targets": list(bundle.targets),
        "parity": manifest.parity,
        "image_parity": manifest.image_parity,
        "decoder_parity": manifest.decoder_parity,
        "producer": manifest.producer,
        "schema_version": manifest.schema_version,
        "device": manifest.device,
        "command": manifest.command,
        "tools": manifest.tools,
        "files": {path: entry.size for path, entry in sorted(manifest.files.items())},
    }


def _model_facts(spec: ModelSpec) -> dict[str, Any]:
    from r1v_export.pipeline.estimate import graph_parameters

    return {
        "architecture": spec.architecture,
        "parameters": graph_parameters(spec),
        "cache_numbers_per_token": 2 * spec.sizes.layers * spec.sizes.kv_heads * spec.sizes.head_dim,
        "spec": spec.model_dump(mode="json"),
    }


def _as_text(facts: dict[str, Any]) -> str:
    from r1v_export.progress import size

    plain = [(name, value) for name, value in facts.items() if isinstance(value, str)]
    plain += [("targets", ", ".join(facts["targets"]))] if "targets" in facts else []
    plain += [(f"parity, {target}", _verdict(why)) for target, why in facts.get("parity", {}).items()]
    for pairs in ("image_parity", "decoder_parity"):
        plain += [(f"parity, {pair}", why) for pair, why in facts.get(pairs, {}).items()]
    plain += (
        [("versions", ", ".join(f"{tool} {version}" for tool, version in facts["tools"].items()))]
        if "tools" in facts
        else []
    )
    parameters: dict[str, int] = facts["parameters"]
    rows = [*parameters.items(), ("all", sum(parameters.values()))]
    numbers: int = facts["cache_numbers_per_token"]
    in_float32 = f"{Count(4 * numbers, 'byte'):,} a token in float32"
    plain.append(("key-value cache", f"{in_float32}, {2 * numbers:,} in 16 bits, {numbers:,} in 8"))
    spec = [(part, _one_line(values)) for part, values in facts["spec"].items()]
    files = [(size(size_bytes), name) for name, size_bytes in facts["files"].items()]
    notes = [wrapped(f"note: {note}") for note in facts.get("notes", ())]
    return "\n\n".join(
        (
            "\n".join((wrapped_table(plain), *notes)),
            "parameters\n" + table((name, f"{count:,}") for name, count in rows),
            "model\n" + wrapped_table(spec),
            "files\n" + "\n".join(f"{text:>9}  {name}" for text, name in files),
        )
    )


def _verdict(why: str) -> str:
    """`passed`, or that the gate did not run and why not."""
    from r1v_export.manifest import PASSED

    return why if why == PASSED else f"not checked: {why}"


def _one_line(values: Any) -> str:
    """`hidden_size=256, norm=rms_norm`: no line break parts a name from its value."""
    if isinstance(values, dict):
        parts = {name: f"({_one_line(value)})" if isinstance(value, dict) else value for name, value in values.items()}
        return ", ".join(f"{name}={_one_line(value)}" for name, value in parts.items())
    if values is None or isinstance(values, bool):
        return {None: "none", True: "yes", False: "no"}[values]
    return f"{values:.10g}" if isinstance(values, float) else str(values)
