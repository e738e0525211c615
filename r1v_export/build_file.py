"""Build files: a BuildConfig as YAML, read and written. Apart from `config`, so that answering needs no PyYAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from r1v_export.config import BuildConfig
from r1v_export.errors import UsageError
from r1v_export.files import read_regular_text
from r1v_export.strict import parse_fields
from r1v_export.strict_yaml import parse_yaml

_EXPLAINED = "compare it with a build file that has every key explained: r1v-export init FILE"


def load_config(path: Path | None, overrides: dict[str, Any]) -> BuildConfig:
    """Read a build file (or none), let the given options win over it, and validate the result.

    Args:
        path: a YAML file with any of BuildConfig's fields.
        overrides: field -> value of the options that were typed.

    Raises:
        UsageError: the file is unreadable or not YAML, or a field is unknown or has a wrong value.
    """
    fields = _merged(_read_yaml(path) if path else {}, overrides)
    what = "The build file is invalid" if path else "The options are invalid"
    return parse_fields(BuildConfig, fields, UsageError, what, where=path, otherwise=_EXPLAINED if path else None)


def config_fields(config: BuildConfig) -> dict[str, Any]:
    """A config's fields as plain values that `load_config` reads as the same config.

    A precision that nobody asked for is omitted: a recipe or a quantized checkpoint implies another one.
    """
    unasked = {"precision"} - config.model_fields_set
    return config.model_dump(mode="json", exclude=unasked)


def config_yaml(config: BuildConfig) -> str:
    """A config with every field as YAML that `load_config` reads."""
    return as_yaml(config.model_dump(mode="json"))


def as_yaml(fields: dict[str, Any]) -> str:
    """Fields as YAML, in their order."""
    return yaml.safe_dump(fields, sort_keys=False)


def _merged(fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Both; of nested mappings, both too. Targets that are named keep the options that the file has for them."""
    merged = {**fields, **overrides}
    for name in fields.keys() & overrides.keys():
        if isinstance(fields[name], dict) and isinstance(overrides[name], dict):
            merged[name] = {**fields[name], **overrides[name]}
    blocks, named = fields.get("targets"), overrides.get("targets")
    if isinstance(blocks, dict) and isinstance(named, tuple):
        merged["targets"] = {name: blocks.get(name) for name in named}
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = read_regular_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "The build file cannot be read.",
            where=path,
            expected="a YAML file in UTF-8",
            found=error.strerror if isinstance(error, OSError) and error.strerror else error,
            fix="correct the path of --config, or omit it and pass options",
        ) from error
    fields = parse_yaml(text, UsageError, "The build file is invalid", where=path)
    if not isinstance(fields, dict):
        raise UsageError(
            "The build file does not consist of keys and values.",
            where=path,
            expected=", ".join(BuildConfig.model_fields),
            found="nothing" if fields is None else "a list" if isinstance(fields, list) else "a single value",
            fix="write one with every key explained: r1v-export init FILE",
        )
    if "rules" in fields:
        raise UsageError(
            "This is a recipe and not a build file.",
            where=path,
            expected=f"keys such as {', '.join(list(BuildConfig.model_fields)[:4])}",
            found=", ".join(map(str, fields)),
            fix=f"pass it with --recipe {path}",
        )
    return fields
