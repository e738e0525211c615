"""Images encoded by another part than the engine that answers, where that is faster.

An engine whose target names `image_targets` has a folder `images/<name>` with what each of them opens, its own among
them where images are rounded to 8 bits. The parity gate compares such a pair, too, where the machine that builds can
run it; what it found stands in the manifest, and nothing but a pair that passed is chosen without being asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r1v_export.bundle import ENGINES, Bundle
from r1v_export.config import BuildConfig, Compute, Device, ImageProducts
from r1v_export.contract import VisionEngine
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.manifest import PASSED
from r1v_export.model_spec import ModelSpec
from r1v_export.targets import registry
from r1v_export.targets.interface import EncodesImages

IMAGES = "images"
"""Folder in an engine's: what encodes images besides the engine itself."""
_DECODER_BY = "decoder by "
AUTO = "auto"
"""The fastest way to encode images that is compared and runs here."""


@dataclass(frozen=True)
class ImageEncoder:
    """What encodes images instead of the engine that answers.

    Attributes:
        name: of its target.
        folder: in that of the engine that answers; None of an engine of its own in the bundle.
        products: what a part of an engine rounds the operands of float32 products to.
    """

    name: str
    folder: Path | None = None
    products: ImageProducts = "bfloat16"

    @property
    def title(self) -> str:
        """What tells it from the others of an engine."""
        return self.name if self.products == "bfloat16" else f"{self.name} in {self.products}"

    @property
    def option_values(self) -> tuple[str, str]:
        """What `--vision-target` takes for a part of an engine: its target, or, with its products, it alone."""
        return self.name, f"{self.name}-{self.products}"

    def why_not_here(self) -> str | None:
        """Why a part does not run on this machine; None if it does. Loads no library."""
        return encoding_target(self.name).why_not_images(self.products)

    def open(self, bundle: Path, spec: ModelSpec, device: Device) -> VisionEngine:
        """Open it, in a bundle's folder, which need not be finished.

        Raises:
            CapabilityError, BundleError: as `Target.open` does.
        """
        if self.folder is None:
            return registry.open_engine(bundle, self.name, spec, device)
        return encoding_target(self.name).open_images(self.folder, bundle, spec, self.products)

    def compute(self, config: BuildConfig, spec: ModelSpec) -> Compute:
        """What it computes in around what it rounds to 8 bits, in a bundle of this config."""
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


def named_pair(target: str, *, images: str | None = None, decoder: str | None = None) -> str:
    """What an engine that answers is called together with those that encode images, and that decode."""
    named = ("images by ", images), (_DECODER_BY, decoder)
    parts = [f"{what}{name}" for what, name in named if name is not None]
    return " with ".join([target, " and ".join(parts)] if parts else [target])


def decoder_of_pair(name: str) -> str:
    """What decodes, in a name of `named_pair` that has it."""
    return name.rpartition(_DECODER_BY)[2]


def encoding_target(name: str) -> EncodesImages:
    """The target of a name, which encodes images for engines.

    Raises:
        CapabilityError: it does not.
        UsageError: there is no such target.
    """
    target = registry.get_target(name)
    if not isinstance(target, EncodesImages):
        raise CapabilityError("A target does not encode images for engines.", where=name, fix="build again")
    return target


def part_folders(bundle: Path, target: str, kind: str) -> list[Path]:
    """The folders, by their targets' names, of what an engine in a bundle's folder leaves to others; one of its own
    target is the last.

    Args:
        kind: IMAGES, or another folder of such parts in the engine's.
    """
    folder = bundle / ENGINES / target / kind
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda path: (path.name == target, path.name))


def parts_of(bundle: Path, target: str) -> list[ImageEncoder]:
    """What an engine in a bundle's folder has to encode images with, besides itself, the fastest first."""
    return [
        ImageEncoder(folder.name, folder, products)
        for folder in part_folders(bundle, target, IMAGES)
        for products in encoding_target(folder.name).image_products(folder)
    ]


def encoders_here(bundle: Path, target: str) -> list[ImageEncoder]:
    """Those of `parts_of` that run on this machine."""
    return [part for part in parts_of(bundle, target) if part.why_not_here() is None]


def choose(bundle: Bundle, target: str, asked: str, device: Device) -> Chosen:
    """What encodes the images of an engine's questions.

    Args:
        target: that answers, an engine of the bundle.
        asked: for a target by its name, a part by one of its `option_values`, or `AUTO`.

    Raises:
        UsageError: the bundle has nothing of that name.
    """
    if asked == target:
        return Chosen(None, "asked for")
    parts, verdicts = parts_of(bundle.folder, target), bundle.manifest.image_parity
    if asked != AUTO:
        return _asked_for(bundle, target, asked, parts)
    if not parts or device != "cpu":
        return Chosen(None, "nothing else encodes images for this engine")
    reasons: list[str] = []
    for part in parts:
        verdict = verdicts.get(named_pair(target, images=part.title), "no gate has compared it")
        why_not = part.why_not_here() or (None if verdict == PASSED else f"{part.title} is here, but {verdict}")
        if why_not is None:
            exact = f"exact with --vision-target {target}"
            note = f"images: by {part.name}, in {part.products}, which is faster here; {exact}"
            others = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
            return Chosen(part, f"{part.title} is faster here, and its gate passed{others}", note)
        reasons.append(why_not)
    return Chosen(None, "; ".join(dict.fromkeys(reasons)))


def _asked_for(bundle: Bundle, target: str, asked: str, parts: list[ImageEncoder]) -> Chosen:
    """What is asked for: an engine of its own, else what a gate has compared, else what is fastest here.

    Raises:
        UsageError: the bundle has nothing of that name.
    """
    named = [part for part in parts if asked in part.option_values and asked not in bundle.targets]
    if not named and asked not in bundle.targets:
        values = dict.fromkeys([AUTO, *bundle.targets, *(name for part in parts for name in part.option_values)])
        raise UsageError(
            "Nothing in the bundle encodes images by this name.",
            where=f"--vision-target {asked}",
            expected=", ".join(values),
            found=f"{asked}, for the engine {target} in {bundle.folder}",
            fix="omit --vision-target, or build again: --precision int4 for onnxruntime has parts in 8 bits",
        )
    if not named:
        encoder, verdict = ImageEncoder(asked), bundle.manifest.parity.get(bundle.target(asked))
    else:
        found = {part: bundle.manifest.image_parity.get(named_pair(target, images=part.title)) for part in named}
        compared = [part for part, each in found.items() if each == PASSED]
        runs_here = [part for part in named if part.why_not_here() is None]
        encoder = (compared or runs_here or named)[0]
        verdict = found[encoder]
    if verdict == PASSED:
        return Chosen(encoder, "asked for")
    compare = f"r1v-export check {bundle.folder} --vision-target {asked}"
    because = f" ({verdict})" if verdict else ""
    note = f"warning: images by {encoder.title} are not compared with PyTorch{because}; compare them: {compare}"
    return Chosen(encoder, "asked for", note)
