"""Recipes: which linear is quantized how. Strict YAML; the shipped ones are in calibration/recipes.

    rules:                                  the last rule that matches a linear wins
      - modules: "language_model.*"         glob or globs over linear names; `*` also matches dots
        layers: [0, -1]                     optional: only in these layers of each tower, negative from its end
        scheme: {weights: ..., inputs: ...} null keeps the linear in 16 bits
    kv_cache: null                          or fp8, int8
    observer: {kind: absmax}                how static input scales are chosen
    propagate_error: false                  whether blocks are calibrated on the outputs of quantized blocks before them

The patch embedding is a convolution and never quantized; the language-model head only where a rule names it in full.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from r1v_export.config import BuildConfig
from r1v_export.errors import UsageError
from r1v_export.files import read_regular_text
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.groups import (
    LM_HEAD_LINEAR,
    PATCH_EMBEDDING,
    LinearGroup,
    layer_of,
    linear_groups,
    linear_shapes,
)
from r1v_export.quantization.kv_scales import CacheType
from r1v_export.quantization.number_formats import InputType, WeightType
from r1v_export.quantization.statistics.range_estimators import Observer
from r1v_export.quoting import did_you_mean, shorten_value
from r1v_export.strict import StrictModel, parse_fields
from r1v_export.strict_yaml import parse_yaml

FOLDER = Path(__file__).parent / "recipes"
"""The shipped recipes; a link to calibration/recipes in a checkout, a plain folder in an installed package."""

PRESETS = {"fp8": "fp8", "int8": "int8-smoothquant", "int4": "int4-gptq"}
"""`--precision` -> the recipe that it stands for. GPTQ and not AWQ: on half-trained r1v-nano weights its divergence
from float was a third of AWQ's."""

GROUP_SIZES = (32, 64, 128)
"""How many inputs can share a scale."""


class _Weights(StrictModel):
    type: WeightType
    granularity: Literal["tensor", "channel", "group"]
    """What shares a scale: the tensor (and what engines fuse it with), an output channel, or a group of inputs."""
    group_size: int | None = None
    _also_grouped: ClassVar[tuple[WeightType, ...]] = ()
    """Types of more than four bits that may be in groups."""

    @model_validator(mode="after")
    def _groups_are_for_four_bits(self) -> _Weights:
        four_bits, grouped = self.type in ("int4", "uint4"), self.granularity == "group"
        if four_bits != grouped and not (grouped and self.type in self._also_grouped):
            wanted = "group" if four_bits else "channel or tensor"
            raise ValueError(f"{self.type} weights need granularity {wanted}, not {self.granularity}")
        if self.group_size not in (GROUP_SIZES if grouped else (None,)):
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise ValueError(f"group_size is one of {sizes} with granularity group, and omitted otherwise")
        return self


class RoundToNearest(_Weights):
    """Round to nearest. With `clip`, each scale is shrunk to the least mean squared error of the weights."""

    algorithm: Literal["rtn"]
    clip: bool = False

    @model_validator(mode="after")
    def _clipping_needs_scales_of_its_own(self) -> RoundToNearest:
        if self.clip and self.granularity == "tensor":
            raise ValueError("clip needs granularity channel or group: a scale of the whole tensor is shared")
        return self


class Awq(_Weights):
    """Activation-aware scales, applied to the layer before the linear, then clipping."""

    type: Literal["int4", "uint4"]
    algorithm: Literal["awq"]
    grid: int = Field(20, ge=1, le=1000)
    """Steps of alpha between 0 and 1."""
    clip: bool = True


class Gptq(_Weights):
    """Round column by column and compensate each column's error in the columns after it."""

    type: Literal["int4", "uint4", "int8"]
    algorithm: Literal["gptq"]
    act_order: Literal["none", "static", "group"] = "static"
    """In which order columns are rounded. `none`: their own. `static`: by falling activation, groups stay neighboring
    inputs. `group`: likewise, and groups follow that order, so that the weight's columns have an order of their own."""
    damping: float = Field(0.01, gt=0, le=1)
    """Added to the diagonal of the Gram matrix, as a fraction of its mean."""
    clip: bool = True

    @model_validator(mode="after")
    def _ordered_groups_need_groups(self) -> Gptq:
        if self.act_order == "group" and self.granularity != "group":
            raise ValueError(f"act_order group needs granularity group, not {self.granularity}: static, or none")
        return self


class SmoothQuant(_Weights):
    """Move part of the activations' range into the weights; the inverse scale goes into the norm before."""

    type: Literal["int8"]
    algorithm: Literal["smoothquant"]
    alpha: float = Field(0.5, ge=0, le=1)


class Imported(_Weights):
    """Keep the quantized values and scales of a quantized checkpoint. Written by imports only."""

    algorithm: Literal["imported"]
    _also_grouped: ClassVar[tuple[WeightType, ...]] = ("int8",)
    pre_quant_scale: bool = False
    """Whether the linear first multiplies its input by a scale per channel."""
    act_order: bool = False
    """Whether the weight's columns are in an order of their own, which the calibration holds. Not written if False."""

    @model_serializer(mode="wrap")
    def _only_true_act_order(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in fields(self).items() if key != "act_order" or value}


Weights = Annotated[RoundToNearest | Awq | Gptq | SmoothQuant | Imported, Field(discriminator="algorithm")]


class Inputs(StrictModel):
    """How the input of a linear is quantized."""

    type: InputType
    mode: Literal["static", "dynamic"]
    """One scale per tensor from calibration, or one per token at run time."""


class Scheme(StrictModel):
    """How one linear is quantized."""

    weights: Weights
    inputs: Inputs | None = None

    @property
    def has_pre_quant_scale(self) -> bool:
        """Whether the linear first multiplies its input by a scale per channel."""
        return isinstance(self.weights, Imported) and self.weights.pre_quant_scale

    @property
    def has_input_order(self) -> bool:
        """Whether the weight's columns are in another order than the input's features."""
        if isinstance(self.weights, Gptq):
            return self.weights.act_order == "group"
        return isinstance(self.weights, Imported) and self.weights.act_order

    @model_validator(mode="after")
    def _inputs_fit_the_weights(self) -> Scheme:
        wanted = {"fp8": "fp8", "int8": "int8", "int4": "fp8", "uint4": "fp8"}[self.weights.type]
        if self.inputs is not None and self.inputs.type != wanted:
            raise ValueError(f"{self.weights.type} weights go with {wanted} inputs or none, not {self.inputs.type}")
        if isinstance(self.weights, SmoothQuant) and self.inputs is None:
            raise ValueError("smoothquant is for quantized inputs: give inputs, or take rtn")
        return self


class Rule(StrictModel):
    """The scheme of the linears that a rule's patterns match."""

    modules: tuple[str, ...] = Field(min_length=1)
    layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    scheme: Scheme | None

    @field_validator("modules", mode="before")
    @classmethod
    def _one_or_more(cls, modules: Any) -> Any:
        return (modules,) if isinstance(modules, str) else modules

    def matches(self, linear: str, layers_of: dict[str, int]) -> bool:
        """Whether the rule is for this linear; `layers_of` counts the layers of each tower."""
        if linear == LM_HEAD_LINEAR:
            return LM_HEAD_LINEAR in self.modules
        if not any(fnmatch.fnmatchcase(linear, pattern) for pattern in self.modules):
            return False
        if self.layers is None:
            return True
        place = layer_of(linear)
        return place is not None and bool({place[1], place[1] - layers_of[place[0]]} & set(self.layers))


class Recipe(StrictModel):
    """A quantization recipe: rules for linears, the cache type, and how input ranges are estimated."""

    name: str
    description: str
    rules: tuple[Rule, ...] = Field(min_length=1)
    kv_cache: CacheType | None = None
    observer: Observer = Observer()
    propagate_error: bool = False
    """Whether samples bring the outputs of the quantized blocks before it to a block, so that it can compensate for
    their error, or those of the original blocks. Statistics of shards cannot be collected so: a block's inputs are not
    known before the one before it is quantized from all samples."""

    @property
    def precision(self) -> Literal["fp8", "int8", "int4"]:
        """What a build by this recipe is called: the fewest bits that any weight has."""
        types = {rule.scheme.weights.type for rule in self.rules if rule.scheme is not None}
        return "int4" if types & {"int4", "uint4"} else "int8" if "int8" in types else "fp8"

    @property
    def is_imported(self) -> bool:
        """Whether it keeps the quantized values of a checkpoint that was quantized already."""
        return any(rule.scheme is not None and isinstance(rule.scheme.weights, Imported) for rule in self.rules)

    def to_yaml(self) -> str:
        """The recipe with every default written out; `parse` of it gives the same recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)


def names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by name, or any by the path of its YAML file.

    Raises:
        UsageError: there is no such recipe, or it is unreadable, not YAML or not a recipe.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name not in names():
            raise _no_such_recipe(name)
        path = FOLDER / f"{name}.yaml"
    try:
        text = read_regular_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "The recipe cannot be read.",
            where=path,
            expected="a YAML file in UTF-8",
            found=error.strerror if isinstance(error, OSError) and error.strerror else error,
            fix="correct the path, or take a recipe by its name: r1v-export recipes list",
        ) from error
    return parse(text, path)


def parse(text: str, where: object = "recipe") -> Recipe:
    """A recipe from its YAML text.

    Raises:
        UsageError: not YAML, or a field is unknown, missing or has a wrong value.
    """
    what = "The recipe is invalid"
    fields = parse_yaml(text, UsageError, what, where=where)
    if isinstance(fields, dict) and "rules" not in fields and not fields.keys() - BuildConfig.model_fields.keys():
        raise UsageError(
            "This is a build file and not a recipe.",
            where=where,
            expected=", ".join(Recipe.model_fields),
            found=", ".join(map(str, fields)) or "nothing",
            fix=f"pass it with --config {where}",
        )
    otherwise = "compare it with a recipe of the package: r1v-export recipes show fp8"
    return parse_fields(Recipe, fields, UsageError, what, where=where, otherwise=otherwise)


def _no_such_recipe(name: str) -> UsageError:
    expected = f"one of {', '.join(names())}, or a .yaml file"
    if name and Path(name).is_dir():
        fix = "pass a recipe's name or file; a finished calibration goes with --calibrated"
        return UsageError("A folder is not a recipe.", where=name, expected=expected, found="a folder", fix=fix)
    found, fix = shorten_value(name), did_you_mean(name, names()) or "r1v-export recipes list"
    return UsageError(f"There is no recipe {found}.", expected=expected, found=found, fix=fix)


def describe(scheme: Scheme) -> str:
    """A scheme in words: "int4 in groups of 128 by awq", "fp8 per channel by rtn, fp8 dynamic inputs"."""
    weights, inputs = scheme.weights, scheme.inputs
    places = f"in groups of {weights.group_size}" if weights.group_size else f"per {weights.granularity}"
    rounded_inputs = f", {inputs.type} {inputs.mode} inputs" if inputs else ""
    order = ", groups in activation order" if scheme.has_input_order else ""
    return f"{weights.type} {places} by {weights.algorithm}{order}{rounded_inputs}"


def resolve(recipe: Recipe, spec: ModelSpec) -> dict[str, Scheme]:
    """The scheme of every linear that is quantized, by name and in model order; checked before anything is computed.

    Raises:
        UsageError: a rule matches nothing, a group size does not divide a linear's inputs, or linears that share an
            input do not share an algorithm that moves scales into the layer before it.
    """
    shapes = linear_shapes(spec)
    layers_of = {"vision_model.encoder": spec.vision.num_layers, "language_model.model": spec.language.num_layers}
    schemes: dict[str, Scheme | None] = {}
    for rule in recipe.rules:
        matched = [linear for linear in shapes if rule.matches(linear, layers_of)]
        if not matched:
            raise _matches_nothing(recipe, rule)
        schemes |= dict.fromkeys(matched, rule.scheme)
    resolved = {linear: scheme for linear in shapes if (scheme := schemes.get(linear)) is not None}
    for linear, scheme in resolved.items():
        _check_groups(recipe, linear, scheme, shapes[linear][1])
    for group in linear_groups(spec):
        _check_group(recipe, group, resolved)
    return resolved


def _matches_nothing(recipe: Recipe, rule: Rule) -> UsageError:
    if PATCH_EMBEDDING in rule.modules:
        what, fix = "The patch embedding is a convolution: it is never quantized.", "exclude it from the recipe"
    else:
        what, fix = "A rule of the recipe matches no linear of this model.", "r1v-export inspect lists the linears"
    modules = ", ".join(rule.modules)
    found = modules if rule.layers is None else f"{modules} in layers {', '.join(map(str, rule.layers))}"
    return UsageError(what, where=f"recipe {recipe.name}", found=found, fix=fix)


def _check_groups(recipe: Recipe, linear: str, scheme: Scheme, in_features: int) -> None:
    size = scheme.weights.group_size
    if size is None or in_features % size == 0:
        return
    fitting = [other for other in GROUP_SIZES if in_features % other == 0]
    raise UsageError(
        f"Groups of {size} do not divide the inputs of {linear}.",
        where=f"recipe {recipe.name}",
        expected=f"in-features that are a multiple of {size}",
        found=f"{in_features} in-features",
        fix=f"group_size {fitting[-1]} for it" if fitting else "a rule with `scheme: null` for it",
    )


def _check_group(recipe: Recipe, group: LinearGroup, schemes: dict[str, Scheme]) -> None:
    """A scale that leaves a tensor must be taken up by everything that reads it, in the same way."""
    found = [schemes.get(linear) for linear in group.linears]
    smoothed = any(scheme is not None and isinstance(scheme.weights, Awq | SmoothQuant) for scheme in found)
    if smoothed and any(scheme != found[0] for scheme in found):
        raise UsageError(
            f"{', '.join(group.linears)} read the same tensor and need the same scheme.",
            where=f"recipe {recipe.name}",
            expected="one scheme: awq and smoothquant scale the tensor itself",
            found=", ".join("16-bit" if s is None else f"{s.weights.type} {s.weights.algorithm}" for s in found),
            fix="one rule for all of them",
        )
