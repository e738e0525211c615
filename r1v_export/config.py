"""BuildConfig: everything that decides what a build makes. Strict, frozen, saved by `build_file`, and re-runnable."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, PositiveInt, field_validator, model_validator

from r1v_export.byte_size import parse_size
from r1v_export.count import Count
from r1v_export.errors import UsageError
from r1v_export.quoting import shorten_text
from r1v_export.strict import SettingError, StrictModel, parse_fields

BUILTIN_MODEL = "r1v-nano"
"""The trained model that the package carries; what a build takes when no MODEL is named."""

Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4"]
Device = Literal["cpu", "cuda"]
Compute = Literal["float32", "float16", "bfloat16"]  # the coarser, the later
Matmul = Literal["float32", "bfloat16"]
ImageProducts = Literal["int8", "bfloat16"]
"""What the operands of a calibration's products are rounded to on the CPU."""
MatmulPrecision = Literal["auto", "float32", "bfloat16"]
Effort = Literal["auto", "quick", "full"]
"""How thoroughly a calibration is done, see `pipeline.effort`."""
GateMode = Literal["auto", "whole", "streamed"]
ImagePolicy = Literal["as_displayed", "published"]
"""How image files become RGB, see `processing.image_policy`."""

COMPUTE_OF: dict[str, Compute] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Precisions that need no calibration, and the dtype that their graphs compute in."""

Options = TypeVar("Options", bound=BaseModel)


class ParityConfig(StrictModel):
    """The parity gate at the end of a build."""

    enabled: bool = True
    """False: engines are not compared with PyTorch; the manifest says so."""
    questions: PositiveInt = 8
    """Questions about images that reference and engine both answer."""
    max_new_tokens: PositiveInt = 64
    """Tokens of an answer, at most."""
    gate: GateMode = "auto"
    """How engine and reference are compared: whole, or a block at a time in bounded memory; whole where both fit into
    memory if `auto`."""
    streamed_questions: PositiveInt = 2
    """Questions of a streamed gate, which takes hours for a large model."""
    streamed_reply_tokens: PositiveInt = 16
    """Tokens behind each question's prompt that a streamed gate decodes."""


class CalibrationConfig(StrictModel):
    """What a quantized build learns its scales from."""

    data: str | None = None
    """A folder or .jsonl file of images and prompts; generated images if omitted."""
    effort: Effort = "auto"
    """Number of samples and, if no recipe is given, the algorithm; auto: quick for large models on a CPU, else full."""
    samples: PositiveInt | None = None
    """Samples, at most; if omitted, as the effort says."""
    matmul_precision: MatmulPrecision = "auto"
    """Type of matrix products on a CPU; auto: bfloat16 for large bfloat16 models on CPUs with instructions for it, else
    float32."""
    activation_memory: str = "auto"
    """Memory for activations between blocks: a number with a unit; auto: 4 GiB, or a third of what is free if that is
    more. What does not fit is written at every block."""
    saved_share: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.02
    """Of what fits, the most that is written for a run after a killed one, over the quantized model's bytes: 0 for
    none; with more, a kill repeats less."""
    shards: PositiveInt = 1
    """Parts that the samples are taken in, whose statistics are then added: more than one for calibrations on several
    machines. Gram matrices (AWQ, GPTQ) depend on how many there are, by rounding, and not on where they ran."""
    artifact: str | None = None
    """A finished calibration (`r1v-export calibrate`) to build with; the other fields then have no effect."""

    @field_validator("activation_memory")
    @classmethod
    def _is_a_number_of_bytes(cls, text: str) -> str:
        if text != "auto":
            parse_size(text)
        return text


class BuildConfig(StrictModel):
    """One build. Left-out fields are filled with their defaults in the saved file.

    What targets there are, and what their blocks hold, is the registry's: `targets.registry.resolved` validates the
    blocks and fills them in.
    """

    model: str = BUILTIN_MODEL
    """Hub id, folder, GGUF file, or `r1v-nano`, the small model in the package. Saved without its folder's path: a
    bundle holds no absolute path."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; saved as the commit that was built."""
    precision: Precision = "fp32"
    """What the engines compute in. A recipe, a finished calibration and a quantized checkpoint imply it; with a budget
    it is the smallest that a module may get, int4 if omitted."""
    budget: str | None = None
    """Such as `kl=0.02` or `size=20GB`: every module's precision is chosen by what quantizing it costs, within it."""
    recipe: str | None = None
    """Name of a recipe (`r1v-export recipes list`) or path of a YAML file; if omitted, that of the precision."""
    calibration: CalibrationConfig = CalibrationConfig()
    targets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Target -> its options, plain values as its own config class has them; a list of names gives each its defaults.
    If omitted, the registry's default target."""
    link_weights: bool = False
    """Whether weight files of the checkpoint that hold nothing quantized become the bundle's as hard links."""
    device: Device = "cpu"
    """Where the engines run and the parity gate is computed."""
    image_policy: ImagePolicy = "as_displayed"
    """How images become RGB wherever the bundle reads one: what viewers show, or the published code bit for bit."""
    parity: ParityConfig = ParityConfig()

    @field_validator("targets", mode="before")
    @classmethod
    def _a_block_for_each_target(cls, targets: Any) -> Any:
        if isinstance(targets, Sequence) and not isinstance(targets, str) and all(isinstance(n, str) for n in targets):
            if not targets:
                raise ValueError("there must be at least one target")
            targets = dict.fromkeys(targets)
        if not isinstance(targets, Mapping):
            raise SettingError(
                "neither a list of names nor names with options",
                expected="a list of names, as in targets: [FIRST, SECOND], or names with the options of each",
                fix=f"write targets: [{shorten_text(targets)}]"
                if isinstance(targets, str)
                else "write the names of targets, which r1v-export doctor lists",
            )
        return {
            name: block.model_dump(mode="json") if isinstance(block, BaseModel) else {} if block is None else block
            for name, block in targets.items()
        }

    @model_validator(mode="before")
    @classmethod
    def _a_budget_reaches_down_to_int4(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("budget") is not None and "precision" not in fields:
            return {**fields, "precision": "int4"}
        return fields

    @model_validator(mode="after")
    def _one_thing_says_how_to_quantize(self) -> BuildConfig:
        given = {
            "a recipe": self.recipe,
            "a budget": self.budget,
            "a finished calibration": self.calibration.artifact,
        }
        named = [name for name, value in given.items() if value is not None]
        if named and not self.quantized and "precision" in self.model_fields_set:
            raise SettingError(
                f"{named[0]} is for quantized precisions, not {self.precision}",
                expected=" or ".join(name for name in get_args(Precision) if name not in COMPUTE_OF),
                found=f"precision {self.precision} with {named[0]}, {given[named[0]]}",
                fix="omit the precision, or choose one of these",
            )
        if self.budget is not None and self.calibration.shards > 1:
            raise SettingError(
                "a search within a budget measures whole models and cannot be split into shards",
                found=f"budget {self.budget} with {Count(self.calibration.shards, 'shard')}",
                fix="omit one of the two",
            )
        if "a budget" in named and len(named) > 1:
            other = next(name for name in named if name != "a budget")
            raise SettingError(
                f"a budget finds its own recipe and does not go with {other}",
                found=f"budget {self.budget} with {other}, {given[other]}",
                fix="omit one of the two",
            )
        return self

    @property
    def quantized(self) -> bool:
        """Whether the build calibrates."""
        return self.precision not in COMPUTE_OF

    def options(self, target: str, config_class: type[Options]) -> Options:
        """A target's own block, with its defaults filled in.

        Raises:
            UsageError: the block has an unknown field or a wrong value.
        """
        what = f"The options of the target {target} are invalid"
        block, where = self.targets.get(target, {}), f"targets.{target}"
        explained = "compare it with a build file that has every key explained: r1v-export init FILE"
        return parse_fields(config_class, block, UsageError, what, where=where, otherwise=explained)

    @property
    def command(self) -> str:
        """What to type in a POSIX shell to build a saved config again."""
        words = ["r1v-export", "build", self.model]
        words += ["--revision", self.revision] if self.revision else []
        words += ["--precision", self.precision]
        words += ["--budget", self.budget] if self.budget else []
        words += ["--recipe", self.recipe] if self.recipe else []
        given = self.calibration_options if self.quantized else {}
        words += [word for option, value in given.items() for word in (option, value)]
        for target in self.targets:
            words += ["--target", target]
        for field, default in {"sm": None, "tp": 1, "pp": 1, "int4_inputs": None}.items():
            if field == "int4_inputs" and self.precision != "int4":
                continue  # Earlier bundles say it in every precision, and `build` refuses it where it has no effect.
            values = {_typed(block[field]) for block in self.targets.values() if field in block}
            # Typed, it is for every target; a target with a value of its own has it from a build file.
            if len(values) == 1 and values != {_typed(default)}:
                words += [f"--{field.replace('_', '-')}", *values]
        words += ["--link-weights"] if self.link_weights else []
        words += ["--device", self.device] if self.device != "cpu" else []
        words += ["--image-policy", self.image_policy] if self.image_policy != "as_displayed" else []
        words += [] if self.parity.enabled else ["--no-parity"]
        words += ["--gate", self.parity.gate] if self.parity.enabled and self.parity.gate != "auto" else []
        return shlex.join(words)

    @property
    def calibration_options(self) -> dict[str, str]:
        """Options of the calibration that are not the default's, and their values as they are typed."""
        calibration, defaults = self.calibration, CalibrationConfig()
        if calibration.artifact is not None:
            return {"--calibrated": calibration.artifact}
        values = {
            "--calib": calibration.data,
            "--shards": calibration.shards if calibration.shards > 1 else None,
            "--effort": calibration.effort if calibration.effort != defaults.effort else None,
            "--samples": calibration.samples,
            "--matmul-precision": (
                calibration.matmul_precision if calibration.matmul_precision != defaults.matmul_precision else None
            ),
            "--activation-memory": (
                calibration.activation_memory if calibration.activation_memory != defaults.activation_memory else None
            ),
            "--saved-share": calibration.saved_share if calibration.saved_share != defaults.saved_share else None,
        }
        return {option: str(value) for option, value in values.items() if value is not None}

    def saved(self, kind: str, revision: str | None) -> BuildConfig:
        """This config as it goes into the bundle: names of files and folders without their path, and the commit that
        was built."""
        model = Path(self.model).resolve().name if kind == "folder" else self.model
        recipe = self.recipe and Path(self.recipe).name
        data = self.calibration.data and Path(self.calibration.data).resolve().name
        artifact = self.calibration.artifact and Path(self.calibration.artifact).resolve().name
        calibration = self.calibration.model_copy(update={"data": data, "artifact": artifact})
        return self.model_copy(
            update={"model": model, "revision": revision, "recipe": recipe, "calibration": calibration}
        )


def _typed(value: Any) -> str:
    """An option's value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
