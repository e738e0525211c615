"""Prompts computed by another target's runtime than the one that decodes, where that is faster.

An engine whose target names a `prompt_target` has a folder `prompts/<name>` with a decoder graph that gives keys and
values alone, on the weights that the bundle has anyway; they go into the cache of the engine, which computes every
token with logits. As with images (`targets.images`), the parity gate compares such a pair where the machine that builds
can run it, and nothing else is chosen without being asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from r1v_export.bundle import Bundle
from r1v_export.config import Compute, Device
from r1v_export.contract import PromptEngine
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.manifest import PASSED
from r1v_export.model_spec import ModelSpec
from r1v_export.targets import registry
from r1v_export.targets.images import AUTO, named_pair, part_folder

PROMPTS = "prompts"
"""Folder in an engine's: what other targets compute prompts with."""

LIMIT_BYTES = 2 << 30
"""Weights of the graph that are held in memory a second time without being asked for, at most."""


@runtime_checkable
class ComputesPrompts(Protocol):
    """A target whose runtime can compute prompts for another target's engines, from the same graphs and weights."""

    name: ClassVar[str]
    prompt_compute: ClassVar[Compute]
    """What it rounds the operands of products to."""

    def write_prompts(self, graphs: Path, out: Path) -> None:
        """Write what it opens, but for the weights, into the empty folder `out`; needs neither library nor CPU.

        Args:
            graphs: the standard graphs, in the folder of that name of the bundle.

        Raises:
            CapabilityError, GraphError: as `Target.build` does.
        """
        ...

    def why_not_prompts(self) -> str | None:
        """Why it computes no prompts on this machine; None if it does. Loads no library."""
        ...

    def prompt_bytes(self, engine: Path) -> int:
        """Size of the weights that it holds, as they lie in the bundle.

        Raises:
            BundleError: the folder `engine` is not what `write_prompts` wrote.
        """
        ...

    def open_prompts(self, engine: Path, bundle: Path, spec: ModelSpec) -> PromptEngine:
        """What `write_prompts` wrote into the folder `engine`, on the weights of the bundle.

        Raises:
            CapabilityError, BundleError: as `Target.open` does.
        """
        ...


@dataclass(frozen=True)
class PromptPart:
    """What computes prompts instead of the engine that decodes.

    Attributes:
        name: of its target.
        folder: in that of the engine.
    """

    name: str
    folder: Path

    def open(self, bundle: Path, spec: ModelSpec) -> PromptEngine:
        """Open it, in a bundle's folder, which need not be finished.

        Raises:
            CapabilityError, BundleError: as `Target.open` does.
        """
        return prompting_target(self.name).open_prompts(self.folder, bundle, spec)


@dataclass(frozen=True)
class ChosenPrompts:
    """What computes prompts.

    Attributes:
        part: None for the engine that decodes.
        why: in words.
        note: what people should know of it, in a line; None if nothing.
    """

    part: PromptPart | None
    why: str
    note: str | None = None


def prompting_target(name: str) -> ComputesPrompts:
    """The target of a name, which computes prompts for others.

    Raises:
        CapabilityError: it does not.
        UsageError: there is no such target.
    """
    target = registry.get_target(name)
    if not isinstance(target, ComputesPrompts):
        raise CapabilityError("A target does not compute prompts for another one.", where=name, fix="build again")
    return target


def prompt_part(bundle: Path, target: str) -> PromptPart | None:
    """What an engine in a bundle's folder has to compute prompts with another target; None if it has nothing."""
    folder = part_folder(bundle, target, PROMPTS)
    return None if folder is None else PromptPart(folder.name, folder)


def choose_prompts(bundle: Bundle, target: str, asked: str | None, device: Device) -> ChosenPrompts:
    """What computes the prompts of an engine's questions.

    Args:
        target: that decodes, an engine of the bundle.
        asked: for a target by its name, or `AUTO`; None for the engine that decodes.

    Raises:
        UsageError: the engine has nothing of the target that is asked for.
    """
    part = prompt_part(bundle.folder, target) if device == "cpu" else None
    if asked is None or asked == target:
        return ChosenPrompts(None, "asked for" if asked else "one question gains less than opening it takes")
    if asked != AUTO:
        return ChosenPrompts(_asked_part(bundle, target, part, asked), "asked for", _warning(bundle, target, asked))
    if part is None:
        return ChosenPrompts(None, "nothing else computes prompts for this engine")
    if (why_not := prompting_target(part.name).why_not_prompts()) is not None:
        return ChosenPrompts(None, why_not)
    verdict = _verdict(bundle, target, part.name)
    if verdict != PASSED:
        return ChosenPrompts(None, f"{part.name} is here, but {verdict}")
    if (size := prompting_target(part.name).prompt_bytes(part.folder)) > LIMIT_BYTES:
        return ChosenPrompts(None, f"{size / 1e9:.1f} GB of weights would be in memory twice")
    note = f"prompts: by {part.name}, which is faster here; not with --prompt-target {target}"
    return ChosenPrompts(part, f"{part.name} is faster here, and its gate passed", note)


def _verdict(bundle: Bundle, target: str, name: str) -> str:
    return bundle.manifest.prompt_parity.get(named_pair(target, prompts=name), "no gate has compared it")


def _warning(bundle: Bundle, target: str, asked: str) -> str | None:
    verdict = _verdict(bundle, target, asked)
    compare = f"r1v-export check {bundle.folder} --prompt-target {asked}"
    note = f"warning: prompts by {asked} are not compared with PyTorch ({verdict}); compare them: {compare}"
    return None if verdict == PASSED else note


def _asked_part(bundle: Bundle, target: str, part: PromptPart | None, asked: str) -> PromptPart:
    """
    Raises:
        UsageError: it is not what was asked for.
    """
    if part is not None and part.name == asked:
        return part
    others = f", {part.name}" if part is not None else ""
    raise UsageError(
        "The engine's prompts cannot be computed by this target.",
        where=f"--prompt-target {asked}",
        expected=f"auto, {target}{others}",
        found=f"{asked}, for the engine {target} in {bundle.folder}",
        fix="omit --prompt-target, or build again: --precision int4 for onnxruntime has a part for openvino, unless "
        "its recipe has a kv_cache",
    )
