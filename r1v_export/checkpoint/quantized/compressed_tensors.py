"""compressed-tensors' layout (`quant_method: compressed-tensors`), as llm-compressor publishes models for vLLM.

`quantization_config` holds groups of linears, each with arguments for its weights and inputs and with a format:

    pack-quantized      integers of 4 or 8 bits in int32 words, input features first, the first in the lowest bits;
                        unsigned: 8, or 128, is added to each
    int-quantized       one int8 for each value
    float-quantized     one FP8 (E4M3) for each value
    naive-quantized     either of the last two, by its arguments

A linear belongs to the group that targets it by name, else by a pattern `re:...` that matches the name's beginning,
else by its class, `Linear`; `ignore` is read likewise. That, the names of arguments and their defaults are those of
the package compressed-tensors 0.17.0 (`quantization/quant_args.py`, `utils/match.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from r1v_export.checkpoint.config_section import UNSUPPORTED, Section
from r1v_export.checkpoint.names import names_under_other_prefixes
from r1v_export.checkpoint.quantized.compressed_values import StoredWeights
from r1v_export.checkpoint.quantized.layout import (
    Inputs,
    LinearLayout,
    QWeightType,
    StoredLinear,
    has_equal_groups,
    unsupported,
)
from r1v_export.errors import CheckpointError

METHOD = "compressed-tensors"
MIXED = "mixed-precision"

Format = Literal["pack-quantized", "int-quantized", "float-quantized", "naive-quantized"]
FORMATS: tuple[Format, ...] = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")

CACHE_SCALES = ("self_attn.k_scale", "self_attn.v_scale")
"""Of a decoder layer's FP8 cache."""
_OLDER_CACHE_SCALES = ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale")

_ARGUMENTS: Mapping[str, Any] = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "group_size": None,
    "strategy": None,
    "block_structure": None,
    "dynamic": False,
    "actorder": None,
    "scale_dtype": None,
    "zp_dtype": None,
    "observer": None,
    "observer_kwargs": None,
}
"""Key -> its default."""
_GROUP_KEYS = ("targets", "weights", "input_activations", "output_activations", "format")
_ACT_ORDERS = {None: False, False: False, "weight": False, "static": False, True: True, "group": True, "dynamic": True}
_WEIGHTS: Mapping[tuple[str, int, bool], tuple[QWeightType, tuple[str, ...]]] = {
    ("float", 8, True): ("fp8", ("tensor", "channel")),
    ("int", 8, True): ("int8", ("tensor", "channel", "group")),
    ("int", 4, True): ("int4", ("channel", "group")),
    ("int", 4, False): ("uint4", ("channel", "group")),
}
"""(type, bits, symmetric) -> what the weights are here, and the strategies that they may have."""
_INPUT_TYPES: Mapping[QWeightType, str] = {"fp8": "fp8", "int8": "int8", "int4": "fp8", "uint4": "fp8"}
_LINEAR, _EMBEDDING = "Linear", "embed_tokens"
_PATTERN = "re:"


@dataclass(frozen=True)
class Arguments:
    """How the weights, inputs or cached values of a group are quantized."""

    section: Section
    bits: int
    kind: str
    """`int` or `float`."""
    symmetric: bool
    strategy: str
    group_size: int | None
    """With the strategy `group`."""

    @classmethod
    def read(cls, section: Section) -> Arguments:
        """Read and check what every use has in common.

        Raises:
            CheckpointError: a value of the wrong type, or a key that is not known, which could mean anything.
        """
        section = Section(section.values, section.path, _ARGUMENTS)
        _refuse_unknown_keys(section, _ARGUMENTS)
        strategy = section.get("strategy")
        if strategy is None:  # as older versions wrote it
            group_size = section.get("group_size")
            strategy = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
        return cls(
            section,
            bits=section.size("num_bits"),
            kind=section.choice("type", "int", "float"),
            symmetric=section.flag("symmetric"),
            strategy=str(strategy).lower(),
            group_size=section.size("group_size") if str(strategy).lower() == "group" else None,
        )

    def wrong_strategy(self, *supported: str) -> CheckpointError:
        """The error for a strategy that is not among those supported."""
        return self.section.wrong("strategy", " or ".join(supported), self.strategy, UNSUPPORTED)


@dataclass(frozen=True)
class Group:
    """One of `config_groups`: how its linears are stored."""

    weights: StoredWeights
    inputs: Inputs | None

    @classmethod
    def read(cls, section: Section, config: Section) -> Group:
        """Read the settings of a group of a configuration.

        Raises:
            CheckpointError: a format, type or strategy that is not supported.
        """
        _refuse_unknown_keys(section, _GROUP_KEYS)
        form = _read_format(section if section.has("format") else config)
        described = section.section("weights")
        if described is None:
            raise section.wrong(
                "weights", "how weights are quantized: inputs alone are not supported", None, UNSUPPORTED
            )
        if section.has("output_activations"):
            raise section.wrong("output_activations", "null", section.get("output_activations"), UNSUPPORTED)
        weights = _read_weights(Arguments.read(described), form)
        described = section.section("input_activations")
        return cls(weights, None if described is None else _read_inputs(Arguments.read(described), weights))


@dataclass(frozen=True)
class Entries:
    """Names, patterns and classes of linears, as `targets` and `ignore` list them."""

    names: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]

    @classmethod
    def read(cls, section: Section, key: str, listed: Iterable[object]) -> Entries:
        """Read a list.

        Raises:
            CheckpointError: an entry is no text, or a pattern is no regular expression.
        """
        names, patterns = set(), []
        for entry in listed:
            if not isinstance(entry, str):
                raise section.wrong(key, "names, patterns or classes", entry)
            if not entry.startswith(_PATTERN):
                names.add(entry)
                continue
            try:
                patterns.append(re.compile(entry.removeprefix(_PATTERN)))
            except (re.error, OverflowError, RecursionError) as error:
                expected = f"a regular expression after {_PATTERN}"
                raise section.wrong(key, expected, f"{entry} ({error})") from error
        return cls(frozenset(names), tuple(sorted(patterns, key=lambda pattern: pattern.pattern)))

    def find(self, names: Collection[str]) -> str | None:
        """The entry that is for a linear, by the names that it may have: a name, else a pattern, else its class."""
        named = next((name for name in names if name in self.names), None)
        if named is not None:
            return named
        for pattern in self.patterns:
            if any(pattern.match(name) for name in names):
                return _PATTERN + pattern.pattern
        return _LINEAR if _LINEAR in self.names else None


@dataclass(frozen=True)
class CompressedTensors:
    """`quant_method: compressed-tensors`: a group for every quantized linear."""

    config: Section
    groups: Mapping[str, Group]
    """By target."""
    targets: Entries
    ignore: Entries
    cache_scales: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()
    method = METHOD
    marker = "weight_scale"

    @classmethod
    def read(cls, config: Section) -> CompressedTensors:
        """Read the settings of a compressed-tensors checkpoint.

        Raises:
            CheckpointError: a group that is not supported, weights that are sparse or transformed, or a cache in
                another type than FP8.
        """
        sparsity = config.section("sparsity_config")
        if sparsity is not None and sparsity.values and sparsity.get("format") != "dense":
            raise sparsity.wrong(
                "format", "dense: sparse weights are not supported", sparsity.get("format"), UNSUPPORTED
            )
        transforms = config.section("transform_config")
        if transforms is not None and transforms.get("config_groups"):
            found = list(transforms.get("config_groups"))
            expected = "none: transforms of weights and activations are not supported"
            raise transforms.wrong("config_groups", expected, found, UNSUPPORTED)
        ignored = config.get("ignore") or []
        if not isinstance(ignored, list):
            raise config.wrong("ignore", "a list", ignored)
        groups = dict(_read_groups(config))
        targets = Entries.read(config, "config_groups", groups)
        return cls(config, groups, targets, Entries.read(config, "ignore", ignored), _read_cache(config))

    def layout(self, linear: str, in_features: int) -> LinearLayout:
        names = names_under_other_prefixes(linear)
        if linear.endswith(_EMBEDDING):
            raise unsupported("A quantized token embedding is not supported.", linear, "16 bits", "quantized values")
        ignored = self.ignore.find(names)
        if ignored is not None:
            raise self.config.wrong("ignore", f"no entry for {linear}, which has scales", ignored)
        target = self.targets.find(names)
        if target is None:
            raise self.config.wrong("config_groups", f"a target for {linear}, which has scales", "none that matches it")
        group = self.groups[target]
        return group.weights.layout(in_features, group.inputs)

    def settle(self, linears: Mapping[str, StoredLinear]) -> CompressedTensors:
        """This format unchanged, its orders of inputs checked.

        Raises:
            CheckpointError: groups that are not of one size, or inputs of parts in different orders.
        """
        for linear in linears.values():
            for part in linear.parts:
                group_index = part.get(linear.layout.group_index)
                if group_index is None:
                    continue
                group_I, size = group_index.read(), linear.layout.group_size or linear.shape[1]
                if not bool((group_I == -1).all()) and not has_equal_groups(group_I, size):
                    what = "Groups of inputs that are not of one size are not supported."
                    expected = f"each of 0 to {linear.shape[1] // size - 1} {size} times"
                    where = f"{group_index.name} in {group_index.file.name}"
                    raise unsupported(what, where, expected, "groups of other sizes")
            linear.input_order()
        return self


def _read_groups(config: Section) -> Iterator[tuple[str, Group]]:
    """Every target with its group, in the order of the configuration: of two with one target, the last counts."""
    groups = config.section("config_groups")
    if groups is None or not groups.values:
        raise config.wrong("config_groups", "one group at least", config.get("config_groups"))
    for name in groups.values:
        section = groups.section(name)
        if section is None:
            raise groups.wrong(name, "an object", None)
        group, targets = Group.read(section, config), section.get("targets")
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise section.wrong("targets", "a list of names, patterns and classes", targets)
        yield from ((target, group) for target in targets)


def _read_format(section: Section) -> Format:
    found = section.get("format")
    known = next((form for form in FORMATS if form == found), None)
    if known is None:
        what = "This compressed-tensors format is not supported."
        raise unsupported(what, f"{section.path}: format", ", ".join(FORMATS), found or "nothing")
    return known


def _read_weights(arguments: Arguments, form: Format) -> StoredWeights:
    section = arguments.section
    known = _WEIGHTS.get((arguments.kind, arguments.bits, arguments.symmetric))
    packed = form == "pack-quantized"
    if known is None or (packed and arguments.kind == "float") or (not packed and not arguments.symmetric):
        expected = "8 bits, or 4 bits of type int; with zero points (symmetric: false) 4 bits in pack-quantized only"
        zero_points = "" if arguments.symmetric else " with zero points"
        found = f"{arguments.bits} bits of type {arguments.kind}{zero_points} in {form}"
        raise unsupported("Weights of this type are not supported.", section.path, expected, found)
    qweight_type, strategies = known
    if arguments.strategy not in strategies:
        raise arguments.wrong_strategy(*strategies)
    if section.get("dynamic") is not False:
        raise section.wrong("dynamic", "false", section.get("dynamic"), UNSUPPORTED)
    act_order = section.get("actorder")
    act_order = act_order.lower() if isinstance(act_order, str) else act_order
    if not isinstance(act_order, (str, bool, type(None))) or act_order not in _ACT_ORDERS:
        raise section.wrong("actorder", "group, weight or null", act_order, UNSUPPORTED)
    ordered = _ACT_ORDERS[act_order]
    if ordered and not (packed and arguments.strategy == "group"):
        expected = "weight or null, but for pack-quantized weights in groups"
        raise section.wrong("actorder", expected, act_order, UNSUPPORTED)
    return StoredWeights(form, qweight_type, packed, arguments.strategy, arguments.group_size, ordered)


def _read_inputs(arguments: Arguments, weights: StoredWeights) -> Inputs:
    section, dynamic = arguments.section, arguments.section.get("dynamic")
    kind = {("float", 8): "fp8", ("int", 8): "int8"}.get((arguments.kind, arguments.bits))
    wanted = _INPUT_TYPES[weights.qweight_type]
    if kind != wanted:
        what = f"{weights.qweight_type.upper()} weights with inputs of this type are not supported."
        found = f"{arguments.bits} bits of type {arguments.kind}"
        raise unsupported(what, section.path, f"{wanted.upper()} inputs, or 16-bit inputs", found)
    if not arguments.symmetric:
        raise section.wrong("symmetric", "true: inputs with zero points are not supported", False, UNSUPPORTED)
    if not isinstance(dynamic, bool):
        raise section.wrong("dynamic", "true or false", dynamic, UNSUPPORTED)
    supported = "token" if dynamic else "tensor"
    if arguments.strategy != supported:
        raise arguments.wrong_strategy(f"{supported} with dynamic: {str(dynamic).lower()}")
    if wanted == "fp8":
        return "fp8 dynamic" if dynamic else "fp8 static"
    return "int8 dynamic" if dynamic else "int8 static"


def _read_cache(config: Section) -> tuple[tuple[str, str], ...]:
    """The names that scales of the key-value cache may have; none where it is in 16 bits."""
    section = config.section("kv_cache_scheme")
    if section is None:
        return ()
    cache = Arguments.read(section)
    found = (cache.kind, cache.bits, cache.symmetric, cache.strategy, cache.section.get("dynamic"))
    if found != ("float", 8, True, "tensor", False):
        what = "A key-value cache quantized in this way is not supported."
        zero_points = "" if cache.symmetric else ", with zero points"
        described = f"{cache.bits} bits of type {cache.kind} per {cache.strategy}, dynamic: {found[-1]}{zero_points}"
        raise unsupported(what, section.path, "8 bits of type float per tensor, dynamic: False", described)
    return CACHE_SCALES, _OLDER_CACHE_SCALES


def _refuse_unknown_keys(section: Section, known: Iterable[str]) -> None:
    unknown = next((key for key in section.values if key not in known and section.has(key)), None)
    if unknown is not None:
        expected = f"no such key: {', '.join(known)} are known"
        raise section.wrong(unknown, expected, section.get(unknown), UNSUPPORTED)
