"""A bundle made ready to answer questions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TypeVar

from r1v_export.bundle import Bundle
from r1v_export.config import Device
from r1v_export.contract import BeginsDecoder, Engine, VisionEngine
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.log_event import log_event
from r1v_export.processing.pipeline_document import open_files
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.runner.base import TILES_PER_RUN, BaseRunner
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.generator_runner import GeneratorRunner
from r1v_export.runner.paired_engine import PairedEngine
from r1v_export.serialized.pipeline import PipelineDocument
from r1v_export.targets import registry
from r1v_export.targets.decoders import ChosenDecoder, choose_decoder
from r1v_export.targets.images import AUTO, Chosen, choose, named_pair

_LOG = logging.getLogger(__name__)

_Part = TypeVar("_Part")
PYTORCH = "pytorch"
"""The target that is the reference itself, with the weights of the checkpoint."""


def open_runner(
    folder: Path,
    target: str | None = None,
    model: str | None = None,
    device: Device = "cpu",
    engine: str | None = None,
    grounding: bool = False,
    vision_target: str = AUTO,
    decoder_target: str | None = AUTO,
    serving: bool = False,
) -> BaseRunner:
    """A runner over one of the bundle's engines, over PyTorch, or over a library that decodes by itself.

    Args:
        target: an engine of the bundle, or `pytorch`; its first engine when None.
        model: where the checkpoint is, for `pytorch`, when the bundle was built from a folder.
        engine: lets a target's own library decode: a folder of `r1v-export engine`, or `llm-api`.
        grounding: let `<ref>`, `<box>` and `<quad>` through in questions and answers.
        vision_target: what encodes images: the target itself, another engine of the bundle, a part by one of
            its `images.ImageEncoder.option_values`, or `images.AUTO`, which is the fastest one that a gate has compared
            and that runs here.
        decoder_target: what decodes, likewise, of what the engine has a part for; None for the target itself.
        serving: other threads of the process have work between two steps, as a server's have, and there is time before
            the first prompt.

    Raises:
        UsageError: target and engine do not match, the bundle has nothing of that name, or `vision_target` or
            `decoder_target` is named with an engine that brings its own.
        BundleError: no whole bundle.
        CapabilityError: what the engine needs is not here.
    """
    bundle = Bundle.open(folder)
    if engine is not None:
        refuse_named(vision_target, decoder_target)
        tokenizer, pipeline = _open_files(folder, grounding)
        generator, vision, tiles = registry.open_generator(bundle, target, engine, device, TILES_PER_RUN)
        return GeneratorRunner(generator, vision, tokenizer, pipeline, bundle.contract.sizes.hidden, tiles)
    target = target if target == PYTORCH else bundle.target(target)
    lazily = target != PYTORCH and registry.get_target(target).opens_lazily
    files = None if lazily else _open_files(folder, grounding)  # damaged, they are refused before a model is loaded
    opened = _open_reference(bundle, model, device) if target == PYTORCH else _open_engine(bundle, target, device)
    decoder = choose_decoder(bundle, target, decoder_target, device)
    images = choose(bundle, target, vision_target, device)
    asked = {what for what, name in (("images", vision_target), ("decoder", decoder_target)) if name != AUTO}
    paired = _paired(opened, bundle, target, images, decoder, device, asked)
    if isinstance(paired, BeginsDecoder):
        paired.begin_decoder(alone=not serving)  # in a thread, while files are read here
    tokenizer, pipeline = files or _open_files(folder, grounding)
    return EngineRunner(paired, tokenizer, pipeline, images.note, decoder.note)


def open_vision(
    folder: Path,
    target: str | None = None,
    device: Device = "cpu",
    engine: str | None = None,
    vision_target: str = AUTO,
) -> tuple[VisionEngine, PipelineDocument, str]:
    """What encodes the bundle's images, without its language model; the bundle's pipeline; and a line for the log.

    Args:
        target, device, engine, vision_target: as `open_runner` has them.

    Raises:
        UsageError, BundleError, CapabilityError: as `open_runner`.
    """
    bundle = Bundle.open(folder)
    _, pipeline = open_files(folder, keep=True)
    if engine is None:
        target, asked = bundle.target(target), {"images"} if vision_target != AUTO else ()
        images, itself = choose(bundle, target, vision_target, device), choose_decoder(bundle, target, None, device)
        opened = _open_engine(bundle, target, device)
        said = images.note or f"images: {target}: {images.why}"
        return _paired(opened, bundle, target, images, itself, device, asked), pipeline, said
    refuse_named(vision_target, None)
    decodes = registry.decoding_target(bundle, target, engine)
    return decodes.open_vision(bundle, device, TILES_PER_RUN), pipeline, f"images: by an engine for {decodes.name}"


def _open_files(folder: Path, grounding: bool) -> tuple[Tokenizer, PipelineDocument]:
    tokenizer, pipeline = open_files(folder, keep=True)
    if grounding:
        tokenizer = tokenizer.with_grounding(piece.token for piece in pipeline.prompt.grounding_tokens)
    return tokenizer, pipeline


def refuse_named(vision_target: str, decoder_target: str | None) -> None:
    """Refuse what encodes images or decodes, if it is named with an engine that brings both.

    Raises:
        UsageError: one of them is named.
    """
    if vision_target != AUTO:
        raise UsageError(
            "An engine whose library decodes encodes images itself.",
            where="--vision-target --engine",
            fix="omit one of the two options",
        )
    if decoder_target not in (None, AUTO):
        raise UsageError(
            "An engine whose library decodes is not decoded by another one.",
            where="--decoder-target --engine",
            fix="omit one of the two options",
        )


def _paired(
    engine: Engine,
    bundle: Bundle,
    target: str,
    images: Chosen,
    decoder: ChosenDecoder,
    device: Device,
    asked: Collection[str],
) -> Engine:
    """An engine, with the images of its questions encoded and their answers decoded by what is chosen for it.

    Args:
        asked: which of `images` and `decoder` somebody asked for. Of the others, the engine does the work where what is
            chosen turns out not to load.
    """
    open_images = open_decoder = encodes = decodes = None
    if (encoder := images.encoder) is not None:
        encodes, open_images = encoder.title, partial(encoder.open, bundle.folder, bundle.spec, device)
        if "images" not in asked:
            open_images = partial(_open_or, engine, open_images, f"images are not encoded by {encodes}")
    if (part := decoder.part) is not None:
        decodes, open_decoder = part.title, partial(part.open, bundle.folder, bundle.spec)
        if "decoder" not in asked:
            open_decoder = partial(_open_or, engine, open_decoder, f"answers are not decoded by {decodes}")
    log_event(_LOG, logging.INFO, "images: %(encoder)s: %(why)s", encoder=encodes or target, why=images.why)
    log_event(_LOG, logging.INFO, "decoder: %(decoder)s: %(why)s", decoder=decodes or target, why=decoder.why)
    if open_images is None and open_decoder is None:
        return engine
    return PairedEngine(engine, named_pair(target, images=encodes, decoder=decodes), open_images, open_decoder)


def _open_or(engine: Engine, open_other: Callable[[], _Part], not_done: str) -> _Part | Engine:
    """What does some of an engine's work; the engine itself where a library turns out not to load.

    Args:
        not_done: what the other one is missing for, for the log.
    """
    try:
        return open_other()
    except CapabilityError as error:
        message = "%(not_done)s: %(reason)s"
        log_event(_LOG, logging.WARNING, message, not_done=not_done, reason=str(error))
        return engine


def _open_engine(bundle: Bundle, target: str | None, device: Device) -> Engine:
    name = bundle.target(target)
    return registry.open_engine(bundle.folder, name, bundle.spec, device)


def _open_reference(bundle: Bundle, model: str | None, device: Device) -> Engine:
    from r1v_export.reference.open_reference import open_reference

    return open_reference(bundle, model, device)
