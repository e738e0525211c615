"""The language model decoded by another target's runtime than the engine's own, where that is faster.

An engine whose target names a `decoder_target` has a folder `decoder/<name>` with the decoder graph as that target
opens it, on the weights that the bundle has anyway. As with images (`targets.images`), the parity gate compares such a
pair where the machine that builds can run it, and nothing else is chosen without being asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from r1v_export import contract
from r1v_export.bundle import Bundle
from r1v_export.config import Compute, Device
from r1v_export.contract import DecoderEngine
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.manifest import PASSED
from r1v_export.model_spec import ModelSpec
from r1v_export.targets import registry
from r1v_export.targets.images import AUTO, named_pair, part_folders
from r1v_export.targets.int4_inputs import Int4Inputs

if TYPE_CHECKING:
    import onnx_ir as ir

DECODER = contract.DECODER
"""Folder in an engine's: what other targets decode with."""


@runtime_checkable
class DecodesForOthers(Protocol):
    """A target whose runtime can decode for another target's engines, from the same graphs and weights."""

    name: ClassVar[str]
    prompt_tokens: ClassVar[int]
    """New tokens of a row from which on it may be computed otherwise than a step: a gate has to compare so long a
    prompt."""

    def write_decoder(self, model: ir.Model, graphs: Path, int4_inputs: Int4Inputs, out: Path) -> None:
        """Write what it opens, but for the weights, into the empty folder `out`; needs neither library nor CPU.

        Args:
            model: the standard decoder, or one with other weights, to be changed; the weights' locations are relative
                to `graphs`.
            graphs: the standard graphs, in the folder of that name of the bundle.
            int4_inputs: what the engine multiplies 4-bit weights with.

        Raises:
            CapabilityError, GraphError: as `Target.build` does.
        """
        ...

    def decoder_compute(self, engine: Path) -> Compute:
        """What the decoder in a folder rounds the operands of products to that are not quantized.

        Raises:
            BundleError: it is damaged.
        """
        ...

    def why_not_decoder(self) -> str | None:
        """Why it does not decode for others on this machine; None if it does. Loads no library."""
        ...

    def decodes_with(self) -> str:
        """What of this machine decides how its decoders compute: where that differs, a gate has to compare them anew.
        Loads no library."""
        ...

    def open_decoder(self, engine: Path, bundle: Path, spec: ModelSpec) -> DecoderEngine:
        """What `write_decoder` wrote into the folder `engine`, on the weights of the bundle.

        Raises:
            CapabilityError, BundleError: as `Target.open` does.
        """
        ...


@dataclass(frozen=True)
class DecoderPart:
    """What decodes instead of the engine itself.

    Attributes:
        name: of its target.
        folder: in that of the engine.
    """

    name: str
    folder: Path

    @property
    def compute(self) -> Compute:
        """What it rounds the operands of products to that are not quantized.

        Raises:
            BundleError: it is damaged.
        """
        return lending_target(self.name).decoder_compute(self.folder)

    @property
    def title(self) -> str:
        """What decodes here, as verdicts name it: that of a processor which computes otherwise is another one's."""
        return self.name if self.compute == "float32" else f"{self.name} in {self.compute}"

    def open(self, bundle: Path, spec: ModelSpec) -> DecoderEngine:
        """Open it, in a bundle's folder, which need not be finished.

        Raises:
            CapabilityError, BundleError: as `Target.open` does.
        """
        return lending_target(self.name).open_decoder(self.folder, bundle, spec)


@dataclass(frozen=True)
class ChosenDecoder:
    """What decodes.

    Attributes:
        part: None for the engine itself.
        why: in words.
        note: what people should know of it, in a line; None if nothing.
    """

    part: DecoderPart | None
    why: str
    note: str | None = None


def lending_target(name: str) -> DecodesForOthers:
    """The target of a name, which decodes for others.

    Raises:
        CapabilityError: it does not.
        UsageError: there is no such target.
    """
    target = registry.get_target(name)
    if not isinstance(target, DecodesForOthers):
        raise CapabilityError("A target does not decode for another one.", where=name, fix="build again")
    return target


def decoder_part(bundle: Path, target: str) -> DecoderPart | None:
    """What an engine in a bundle's folder has to decode with another target; None if it has nothing."""
    folders = part_folders(bundle, target, DECODER)
    return DecoderPart(folders[0].name, folders[0]) if folders else None


def choose_decoder(bundle: Bundle, target: str, asked: str | None, device: Device) -> ChosenDecoder:
    """What decodes the answers to an engine's questions.

    Args:
        target: that answers, an engine of the bundle.
        asked: for a target by its name, or `AUTO`; None for the engine itself.

    Raises:
        UsageError: the engine has nothing of the target that is asked for.
    """
    part = decoder_part(bundle.folder, target) if device == "cpu" else None
    if asked is None or asked == target:
        return ChosenDecoder(None, "asked for" if asked else "one question gains less than opening another one takes")
    if asked != AUTO:
        found = _asked_part(bundle, target, part, asked)
        return ChosenDecoder(found, "asked for", _warning(bundle, target, found))
    if part is None:
        return ChosenDecoder(None, "nothing else decodes for this engine")
    if (why_not := lending_target(part.name).why_not_decoder()) is not None:
        return ChosenDecoder(None, why_not)
    verdict = _verdict(bundle, target, part)
    if verdict != PASSED:
        return ChosenDecoder(None, f"{part.title} is here, but {verdict}")
    note = f"decoder: {part.title}, which is faster here; not with --decoder-target {target}"
    return ChosenDecoder(part, f"{part.name} is faster here, and its gate passed", note)


def _verdict(bundle: Bundle, target: str, part: DecoderPart) -> str:
    return bundle.manifest.decoder_parity.get(named_pair(target, decoder=part.title), "no gate has compared it")


def _warning(bundle: Bundle, target: str, part: DecoderPart) -> str | None:
    verdict = _verdict(bundle, target, part)
    compare = f"r1v-export check {bundle.folder} --decoder-target {part.name}"
    note = f"warning: decoding by {part.title} is not compared with PyTorch ({verdict}); compare it: {compare}"
    return None if verdict == PASSED else note


def _asked_part(bundle: Bundle, target: str, part: DecoderPart | None, asked: str) -> DecoderPart:
    """
    Raises:
        UsageError: it is not what was asked for.
    """
    if part is not None and part.name == asked:
        return part
    others = f", {part.name}" if part is not None else ""
    raise UsageError(
        "The engine's answers cannot be decoded by this target.",
        where=f"--decoder-target {asked}",
        expected=f"auto, {target}{others}",
        found=f"{asked}, for the engine {target} in {bundle.folder}",
        fix="omit --decoder-target, or build again: --precision int4 for onnxruntime has a part for openvino, unless "
        "its recipe has a kv_cache",
    )
