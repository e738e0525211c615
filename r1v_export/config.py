"""BuildConfig: everything that decides what a build makes. Strict, frozen, saved as `build.yaml`, and re-runnable."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from r1v_export.errors import CapabilityError, UsageError

BUILTIN_MODEL = "r1v-nano"
"""The trained model that the package carries; what a build takes when no MODEL is named."""

Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4"]
Device = Literal["cpu", "cuda"]
Compute = Literal["float32", "float16", "bfloat16"]

COMPUTE_OF: dict[str, Compute] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Precisions that need no calibration, and the dtype that their graphs compute in."""


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ParityConfig(_Config):
    """The parity gate at the end of a build."""

    enabled: bool = True
    """False builds engines that nothing vouches for; the manifest says so."""
    questions: PositiveInt = 8
    """Questions about pictures that reference and engine both answer."""
    max_new_tokens: PositiveInt = 64


class BuildConfig(_Config):
    """One build. Left-out fields are filled with their defaults in the saved file."""

    model: str = BUILTIN_MODEL
    """Hub id, folder, or `r1v-nano`. Saved without its folder's path: a bundle holds no absolute path."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; saved as the commit that was built."""
    precision: Precision = "fp32"
    targets: tuple[str, ...] = Field(default=("onnxruntime",), min_length=1)
    device: Device = "cpu"
    """Where the engines run and the parity gate is computed."""
    parity: ParityConfig = ParityConfig()

    @field_validator("targets")
    @classmethod
    def _targets_once_and_sorted(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(targets)))

    @property
    def compute(self) -> Compute:
        """The dtype that the graphs compute in.

        Raises:
            CapabilityError: the precision needs calibration, which this version does not have yet.
        """
        if self.precision not in COMPUTE_OF:
            raise CapabilityError(
                f"Precision {self.precision} is not built yet: calibration comes with the next version.",
                expected=" or ".join(COMPUTE_OF),
                found=self.precision,
                fix=f"build with --precision {next(iter(COMPUTE_OF))} for now",
            )
        return COMPUTE_OF[self.precision]

    @property
    def command(self) -> str:
        """What to type to build a saved config again."""
        words = ["r1v-export", "build", self.model]
        words += ["--revision", self.revision] if self.revision else []
        words += ["--precision", self.precision]
        for target in self.targets:
            words += ["--target", target]
        words += ["--device", self.device] if self.device != "cpu" else []
        words += [] if self.parity.enabled else ["--no-parity"]
        return " ".join(words)

    def saved(self, kind: str, revision: str | None) -> BuildConfig:
        """This config as it goes into the bundle: a folder's name without its path, and the commit that was built."""
        model = Path(self.model).resolve().name if kind == "folder" else self.model
        return self.model_copy(update={"model": model, "revision": revision})

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: Path | None, overrides: dict[str, Any]) -> BuildConfig:
    """Read a build file (or none), let the given options win over it, and validate the result.

    Args:
        path: a YAML file with any of BuildConfig's fields.
        overrides: field -> value of the options that were typed.

    Raises:
        UsageError: the file is unreadable or not YAML, or a field is unknown or has a wrong value.
    """
    fields = _merged(_read_yaml(path) if path else {}, overrides)
    try:
        return BuildConfig.model_validate(fields)
    except ValidationError as error:
        raise _usage_error(error, path) from error


def _merged(fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Both; of nested mappings, both too."""
    merged = {**fields, **overrides}
    for name in fields.keys() & overrides.keys():
        if isinstance(fields[name], dict) and isinstance(overrides[name], dict):
            merged[name] = {**fields[name], **overrides[name]}
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("The build file cannot be read.", where=path, found=error) from error
    except yaml.YAMLError as error:
        raise UsageError("The build file is not YAML.", where=path, found=" ".join(str(error).split())) from error
    if not isinstance(fields, dict):
        raise UsageError(
            "The build file is not a mapping of fields.",
            where=path,
            expected=", ".join(BuildConfig.model_fields),
            found=type(fields).__name__,
        )
    return fields


def _usage_error(error: ValidationError, path: Path | None) -> UsageError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    where = path or "options"
    if first["type"] == "extra_forbidden":
        known = ", ".join(BuildConfig.model_fields)
        return UsageError(f"A build has no field {name!r}.", where=where, expected=f"one of {known}", found=name)
    return UsageError(f"{name}: {first['msg']}.", where=where, found=repr(first["input"]))
