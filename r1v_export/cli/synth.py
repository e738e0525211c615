"""`r1v-export synth`: a random checkpoint of any size, in the official layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click

from r1v_export.cli.output import (
    WholeNumber,
    common_options,
    print_json,
    shown_progress,
)
from r1v_export.cli.paths import OptionPath
from r1v_export.errors import CheckpointError, UsageError


@click.command(short_help="Write a random checkpoint.")
@click.argument("folder", type=OptionPath())
@click.option(
    "--preset",
    metavar="NAME",
    default="nano",
    show_default=True,
    help="Family version, such as r1v3-38b or internvl3-1b.",
)
@click.option("--vision-layers", type=WholeNumber(min=1), help="ViT blocks, instead of the preset's.")
@click.option("--language-layers", type=WholeNumber(min=1), help="Decoder layers, instead of the preset's.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of config.json, such as llm_config.rope_theta=1e6; repeat for several.",
)
@click.option(
    "--layout",
    type=click.Choice(["internvl_chat", "internvl"]),
    default="internvl_chat",
    show_default=True,
    help="Weight names and config.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Type of every tensor.",
)
@click.option("--shards", type=WholeNumber(min=1), help="Weight files, at most one per tensor. [default: one per 5 GB]")
@click.option("--sparse", is_flag=True, help="True file sizes; an eighth of every matrix, holes between.")
@click.option("--empty", is_flag=True, help="True file sizes; all weights zero, no disk taken.")
@click.option("--awq", is_flag=True, help="Decoder linears in 4 bits, as AutoAWQ stores them, in groups of 128.")
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Another seed, other weights.")
@common_options
def command(folder: Path, settings: tuple[str, ...], sparse: bool, empty: bool, format_: str, **options: Any) -> None:
    """Write a random checkpoint into FOLDER."""
    from r1v_export.checkpoint.synth import synthesize
    from r1v_export.files import explain_full_disk
    from r1v_export.progress import size

    weights = _weights(sparse, empty)
    overrides = dict(map(_parse, settings))
    with shown_progress(format_, 1).stage("weights") as task:
        with explain_full_disk(folder), _own_settings():
            synthesize(folder, overrides=overrides, weights=weights, on_progress=task.report, **options)
        size_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        task.outcome = size(size_bytes)
    if format_ == "json":
        print_json({"checkpoint": str(folder), "size_bytes": size_bytes})
    else:
        click.echo(f"{folder}: {size(size_bytes)} of {weights} weights")


def _weights(sparse: bool, empty: bool) -> Literal["random", "sparse", "empty"]:
    if sparse and empty:
        raise UsageError("Weights are either sparse or empty.", found="--sparse and --empty", fix="omit one of the two")
    return "sparse" if sparse else "empty" if empty else "random"


@contextmanager
def _own_settings() -> Iterator[None]:
    """What a configuration refuses comes from the command line: there is no published one to compare with."""
    try:
        yield
    except CheckpointError as error:
        raise UsageError(
            error.what,
            where=error.where,
            expected=error.expected,
            found=error.found,
            fix="give another --set, --vision-layers or --language-layers",
        ) from error


def _parse(setting: str) -> tuple[str, Any]:
    """`a.b=2` -> ("a.b", 2); the value is YAML."""
    from r1v_export.checkpoint.config_keys import require_known_setting
    from r1v_export.strict_yaml import parse_yaml

    key, equals, value = setting.partition("=")
    if not key or not equals:
        raise UsageError(
            "A setting has no value." if key else "A setting has no key.",
            where="--set",
            expected="KEY=VALUE",
            found=setting,
            fix="write one such as --set llm_config.rope_theta=1e6",
        )
    require_known_setting(key)
    parsed = parse_yaml(value, UsageError, "A setting has an invalid value", where=key)
    # YAML 1.1 takes 1e6 for text.
    return key, _number(parsed) if isinstance(parsed, str) else parsed


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
