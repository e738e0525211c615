"""Images encoded by another target's runtime than the one that answers, where that is faster.

An engine whose target names an `image_target` has a folder `images/<name>` with what that target opens, on the weights
that the bundle has anyway. The parity gate compares such a pair, too, where the machine that builds can run it; what it
found stands in the manifest, and nothing but a pair that passed is chosen without being asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r1v_export.bundle import ENGINES, Bundle
from r1v_export.config import BuildConfig, Compute, Device
from r1v_export.contract import VisionEngine
from r1v_export.errors import CapabilityError
from r1v_export.manifest import PASSED
from r1v_export.model_spec import ModelSpec
from r1v_export.targets import registry
from r1v_export.targets.interface import EncodesImages

IMAGES = "images"
"""Folder in an engine's: what other targets encode images with."""
AUTO = "auto"
"""The fastest way to encode images that is compared and runs here."""


@dataclass(frozen=True)
class ImageEncoder:
    """What encodes images instead of the engine that answers.

    Attributes:
        name: of its target.
        folder: in that of the engine that answers; None of an engine of its own in the bundle.
    """

    name: str
    folder: Path | None = None

    def open(self, bundle: Path, spec: ModelSpec, device: Device) -> VisionEngine:
        """Open it, in a bundle's folder, which need not be finished.

        Raises:
            CapabilityError, BundleError: as `Target.open` does.
        """
        if self.folder is None:
            return registry.open_engine(bundle, self.name, spec, device)
        return encoding_target(self.name).open_images(self.folder, bundle, spec)

    def compute(self, config: BuildConfig, spec: ModelSpec) -> Compute:
        """What it rounds the operands of products to, in a bundle of this config."""
        if self.folder is None:
            return registry.get_target(self.name).numerics(config, spec).compute
        return encoding_target(self.name).image_compute


@dataclass(frozen=True)
class Chosen:
    """What encodes images.

    Attributes:
        encoder: None for the engine that answers.
        why: in words.
        note: what people should know of it, in a line; None if nothing.
    """

    encoder: ImageEncoder | None
    why: str
    note: str | None = None


def pair_name(target: str, encoder: str) -> str:
    """What an engine that answers and one that encodes images are called together."""
    return f"{target} with images by {encoder}"


def encoding_target(name: str) -> EncodesImages:
    """The target of a name, which encodes images for others.

    Raises:
        CapabilityError: it does not.
        UsageError: there is no such target.
    """
    target = registry.get_target(name)
    if not isinstance(target, EncodesImages):
        raise CapabilityError("A target does not encode images for another one.", where=name, fix="build again")
    return target


def part_of(bundle: Path, target: str) -> ImageEncoder | None:
    """What an engine in a bundle's folder has to encode images with another target; None if it has nothing."""
    folder = bundle / ENGINES / target / IMAGES
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return ImageEncoder(found[0].name, found[0]) if found else None


def choose(bundle: Bundle, target: str, asked: str, device: Device) -> Chosen:
    """What encodes the images of an engine's questions.

    Args:
        target: that answers, an engine of the bundle.
        asked: for a target by its name, or `AUTO`.

    Raises:
        UsageError: the bundle has no such engine.
    """
    if asked == target:
        return Chosen(None, "asked for")
    part, verdicts = part_of(bundle.folder, target), bundle.manifest.image_parity
    if asked != AUTO:
        of_part = part is not None and part.name == asked and asked not in bundle.targets
        own = None if of_part else bundle.target(asked)
        verdict = verdicts.get(pair_name(target, asked)) if own is None else bundle.manifest.parity.get(own)
        compare = f"r1v-export check {bundle.folder} --vision-target {asked}"
        note = f"warning: images by {asked} are not compared with PyTorch ({verdict}); compare them: {compare}"
        return Chosen(part if of_part else ImageEncoder(asked), "asked for", None if verdict == PASSED else note)
    if part is None or device != "cpu":
        return Chosen(None, "nothing else encodes images for this engine")
    encoder = encoding_target(part.name)
    if (why_not := encoder.why_not_images()) is not None:
        return Chosen(None, why_not)
    verdict = verdicts.get(pair_name(target, part.name), "no gate has compared it")
    if verdict != PASSED:
        return Chosen(None, f"{part.name} is here, but {verdict}")
    exact = f"exact with --vision-target {target}"
    note = f"images: by {part.name}, in {encoder.image_compute}, which is faster here; {exact}"
    return Chosen(part, f"{part.name} is faster here, and its gate passed", note)
