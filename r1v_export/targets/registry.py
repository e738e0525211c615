"""The targets that there are, by name. Nothing of a target is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1v_export import build_extra
from r1v_export.bundle import ENGINES, Bundle
from r1v_export.config import COMPUTE_OF, BuildConfig, Compute, Device
from r1v_export.errors import BundleError, CapabilityError, UsageError
from r1v_export.quoting import did_you_mean, shorten_value
from r1v_export.targets.entry_points import DEFAULT, names, points
from r1v_export.targets.interface import CompilesEngines, Decodes, Deployment, DescribesEngines, Target

if TYPE_CHECKING:
    from r1v_export.contract import Engine
    from r1v_export.model_spec import ModelSpec


def get_target(name: str) -> Target:
    """The target of a name.

    Raises:
        UsageError: there is no such target, or two packages bring it.
        CapabilityError: the package that brings it cannot be imported, or brings something else.
    """
    found = [point for point in points() if point.name == name]
    if not found:
        raise UsageError(
            f"There is no target {shorten_value(name)}.",
            expected=" or ".join(names()),
            found=shorten_value(name),
            fix=did_you_mean(name, names()) or "pass one of these, or install the package that provides it",
        )
    if len(found) > 1:
        raise UsageError(
            f"Two packages provide the target {name}.",
            expected="one",
            found=", ".join(point.value for point in found),
            fix="uninstall one of them",
        )
    return _load(found[0])


def open_engine(folder: Path, name: str, spec: ModelSpec, device: Device) -> Engine:
    """The engine of a target in a bundle's folder, which need not be finished.

    Raises:
        UsageError, CapabilityError, BundleError: as `get_target` and `Target.open`.
    """
    return get_target(name).open(folder / ENGINES / name, spec, device)


def loadable() -> Iterator[Target]:
    """Every target that can be imported; `doctor` says why another cannot."""
    for name in names():
        try:
            yield get_target(name)
        except (CapabilityError, UsageError):
            continue


def resolved(config: BuildConfig) -> BuildConfig:
    """The config with every target's block validated and filled with its defaults, in order of preference.

    Raises:
        UsageError: there is no such target, or a block has an unknown field or a wrong value.
        CapabilityError: the package that brings a target cannot be imported.
    """
    chosen = {name: get_target(name) for name in config.targets or (DEFAULT,)}
    blocks = {
        name: config.options(name, chosen[name].config_class).model_dump(mode="json")
        for name in names()
        if name in chosen
    }
    return config.model_copy(update={"targets": blocks})


def with_option(config: BuildConfig, field: str, value: Any, where: str) -> BuildConfig:
    """The config with one option set in the block of every target that has it.

    Args:
        where: what the user typed, for the error.

    Raises:
        UsageError: no target of the build has such an option, or it does not take the value.
    """
    config = resolved(config)
    takers = [name for name in config.targets if field in get_target(name).config_class.model_fields]
    if not takers:
        offering = [target.name for target in loadable() if field in target.config_class.model_fields]
        raise UsageError(
            f"No target of this build has the option {field}.",
            where=where,
            expected=" or ".join(offering) or None,
            found=", ".join(config.targets),
            fix="omit it, or pass such a target with --target",
        )
    blocks = {name: {**block, field: value} if name in takers else block for name, block in config.targets.items()}
    try:
        return resolved(config.model_copy(update={"targets": blocks}))
    except UsageError as error:
        fix = f"correct {where.partition(' ')[0]}, or omit it"
        raise UsageError(error.what, where=where, expected=error.expected, found=error.found, fix=fix) from error


def compute_dtype(config: BuildConfig) -> Compute:
    """The dtype that the graphs of a build compute in, around what is quantized."""
    if not config.quantized:
        return COMPUTE_OF[config.precision]
    asked = {get_target(name).quantized_compute(config.device) for name in config.targets or (DEFAULT,)}
    return "float32" if "float32" in asked else sorted(asked)[-1]


def tools(name: str) -> tuple[str, ...]:
    """Distributions whose version can change what a target writes or computes."""
    target = get_target(name)
    brought = [point.dist.name for point in points() if point.name == name and point.dist is not None]
    return (*target.tools, *brought)


def all_tools() -> tuple[str, ...]:
    """Those of every target that can be imported."""
    return tuple(dict.fromkeys(tool for target in loadable() for tool in tools(target.name)))


def open_generator(bundle: Bundle, target: str | None, engine: str, device: Device, tiles_per_gpu: int) -> Deployment:
    """A bundle's language model decoded by a target's own library.

    Args:
        target: the target that is asked for; None if `engine` says it all.
        engine: what `--engine` was given.
        device: where images are encoded.
        tiles_per_gpu: tiles that a GPU encodes at once.

    Raises:
        UsageError: engine and target do not match.
        BundleError, CapabilityError: as `Decodes.open_generator`.
    """
    return decoding_target(bundle, target, engine).open_generator(bundle, engine, device, tiles_per_gpu)


def decoding_target(bundle: Bundle, target: str | None, engine: str) -> Decodes:
    """The target of a bundle whose library decodes an engine, as `open_generator` has it.

    Raises:
        UsageError: engine and target do not match, or the bundle was not built for the target.
    """
    offering = [each for each in loadable() if isinstance(each, Decodes)]
    if not offering:
        _require_all()
    chosen = next((each for each in offering if each.takes_engine(engine) and target in (None, each.name)), None)
    if chosen is None:
        raise UsageError(
            "This engine was not built for this target.",
            where=f"--engine {engine}" + (f" --target {target}" if target else ""),
            expected=", ".join(f"{each.engine_syntax} for {each.name}" for each in offering),
            fix="omit --engine, which only these targets read, or name one of them with --target",
        )
    if chosen.name not in bundle.targets:
        raise UsageError(
            "The bundle has no target that this engine belongs to.",
            where=f"--engine {engine}",
            expected=f"a bundle that was built for {chosen.name}",
            found=f"{bundle.folder}, built for {', '.join(bundle.targets) or 'no target'}",
            fix=f"omit --engine, or build such a bundle with: r1v-export build --target {chosen.name} -o FOLDER",
        )
    return chosen


def engine_compiler(bundle: Bundle) -> CompilesEngines:
    """The bundle's target whose engines are made by a program of the library.

    Raises:
        BundleError: the bundle has none.
    """
    offering = [each for each in loadable() if isinstance(each, CompilesEngines)]
    if not offering:
        _require_all()
    for name in bundle.targets:
        for target in offering:
            if target.name == name:
                return target
    raise BundleError(
        "The bundle has nothing that an engine is built from.",
        where=bundle.folder,
        expected=" or ".join(each.name for each in offering),
        found=", ".join(bundle.targets) or None,
        fix=f"build one with: r1v-export build --target {offering[0].name} -o FOLDER",
    )


def engine_describer(bundle: Bundle, target: str | None) -> DescribesEngines:
    """The bundle's target of that name, or its first, if its engines can be looked into.

    Raises:
        UsageError: the bundle has no such target, or its engines cannot be looked into.
    """
    name = bundle.target(target)
    found = get_target(name)
    if not isinstance(found, DescribesEngines):
        raise UsageError(
            f"inspect cannot look into an engine of {name}.",
            where=bundle.folder,
            expected=" or ".join(each.name for each in loadable() if isinstance(each, DescribesEngines)),
            found=f"{name}, whose files other tools read",
            fix="omit --target: the bundle and its files are then listed",
        )
    return found


def _require_all() -> None:
    """Raise the error of the first target that cannot be imported, as most cannot in a runtime-only installation."""
    for name in names():
        get_target(name)


def _load(point: EntryPoint) -> Target:
    try:
        with build_extra.required():
            target = point.load()()
    except CapabilityError:
        raise
    except Exception as error:  # Whatever the code of another package raises.
        raise CapabilityError(
            f"The target {point.name} cannot be imported.",
            where=point.value,
            found=error,
            fix="install what it needs, or uninstall the package that provides it",
        ) from error
    if not isinstance(target, Target):
        raise CapabilityError(
            f"The target {point.name} is not a target class.",
            where=point.value,
            expected="a class derived from r1v_export.targets.interface.Target",
            found=type(target).__name__,
        )
    return target
