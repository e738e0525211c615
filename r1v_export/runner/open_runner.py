"""A bundle made ready to answer questions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from r1v_export.bundle import Bundle
from r1v_export.config import Device
from r1v_export.contract import Engine, PromptEngine, VisionEngine
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.log_event import log_event
from r1v_export.processing.pipeline_document import open_files
from r1v_export.runner.base import TILES_PER_RUN, BaseRunner
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.generator_runner import GeneratorRunner
from r1v_export.runner.paired_engine import PairedEngine
from r1v_export.runner.prompted_engine import PromptedEngine
from r1v_export.serialized.pipeline import PipelineDocument
from r1v_export.targets import registry
from r1v_export.targets.images import AUTO, Chosen, choose, named_pair
from r1v_export.targets.prompts import ChosenPrompts, choose_prompts

_LOG = logging.getLogger(__name__)
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
    prompt_target: str | None = AUTO,
) -> BaseRunner:
    """A runner over one of the bundle's engines, over PyTorch, or over a library that decodes by itself.

    Args:
        target: an engine of the bundle, or `pytorch`; its first engine when None.
        model: where the checkpoint is, for `pytorch`, when the bundle was built from a folder.
        engine: lets a target's own library decode: a folder of `r1v-export engine`, or `llm-api`.
        grounding: let `<ref>`, `<box>` and `<quad>` through in questions and answers.
        vision_target: what encodes images: the target itself, another engine of the bundle, or `images.AUTO`, which is
            the fastest one that a gate has compared and that runs here.
        prompt_target: what computes prompts, likewise, of what the engine has a part for; None for the target itself.

    Raises:
        UsageError: target and engine do not match, the bundle has no such target, or `vision_target` or `prompt_target`
            is named with an engine that brings its own.
        BundleError: no whole bundle.
        CapabilityError: what the engine needs is not here.
    """
    bundle = Bundle.open(folder)
    tokenizer, pipeline = open_files(folder)
    if grounding:
        tokenizer = tokenizer.with_grounding(piece.token for piece in pipeline.prompt.grounding_tokens)
    if engine is not None:
        _refuse_named(vision_target, prompt_target)
        generator, vision, tiles = registry.open_generator(bundle, target, engine, device, TILES_PER_RUN)
        return GeneratorRunner(generator, vision, tokenizer, pipeline, bundle.contract.sizes.hidden, tiles)
    if target == PYTORCH:
        opened = _open_reference(bundle, model, device)
    else:
        opened, target = _open_engine(bundle, target, device), bundle.target(target)
    of_prompts = choose_prompts(bundle, target, prompt_target, device)
    prompted = _prompted(opened, bundle, target, of_prompts, optional=prompt_target == AUTO)
    chosen = choose(bundle, target, vision_target, device)
    paired = _paired(prompted, bundle, target, chosen, of_prompts, device, optional=vision_target == AUTO)
    return EngineRunner(paired, tokenizer, pipeline, chosen.note, of_prompts.note)


def open_vision(
    folder: Path, target: str | None = None, device: Device = "cpu", engine: str | None = None
) -> tuple[VisionEngine, PipelineDocument]:
    """What encodes the bundle's images, without its language model, and the bundle's pipeline.

    Args:
        target, device, engine: as `open_runner` has them.

    Raises:
        UsageError, BundleError, CapabilityError: as `open_runner`.
    """
    bundle = Bundle.open(folder)
    _, pipeline = open_files(folder)
    if engine is None:
        return _open_engine(bundle, target, device), pipeline
    return registry.decoding_target(bundle, target, engine).open_vision(bundle, device, TILES_PER_RUN), pipeline


def _refuse_named(vision_target: str, prompt_target: str | None) -> None:
    """
    Raises:
        UsageError: what encodes images or computes prompts is named with an engine that brings both.
    """
    if vision_target != AUTO:
        raise UsageError(
            "An engine whose library decodes encodes images itself.",
            where="--vision-target --engine",
            fix="omit one of the two options",
        )
    if prompt_target not in (None, AUTO):
        raise UsageError(
            "An engine whose library decodes computes prompts itself.",
            where="--prompt-target --engine",
            fix="omit one of the two options",
        )


def _prompted(engine: Engine, bundle: Bundle, target: str, chosen: ChosenPrompts, *, optional: bool) -> Engine:
    """An engine, with its prompts computed by what is chosen for them.

    Args:
        optional: let the engine compute them where what is chosen cannot be opened.
    """
    part = chosen.part
    by = target if part is None else part.name
    log_event(_LOG, logging.INFO, "prompts: %(by)s: %(why)s", by=by, why=chosen.why)
    if part is None:
        return engine

    def open_prompts() -> PromptEngine | None:
        try:
            return part.open(bundle.folder, bundle.spec)
        except CapabilityError as error:
            if not optional:
                raise
            message = "prompts are not computed by %(by)s: %(reason)s"
            log_event(_LOG, logging.WARNING, message, by=by, reason=str(error))
            return None

    return PromptedEngine(engine, open_prompts, named_pair(target, prompts=by))


def _paired(
    engine: Engine,
    bundle: Bundle,
    target: str,
    chosen: Chosen,
    of_prompts: ChosenPrompts,
    device: Device,
    *,
    optional: bool,
) -> Engine:
    """An engine, with the images of its questions encoded by what is chosen for them.

    Args:
        optional: let the engine encode them where what is chosen cannot be opened.
    """
    encoder = chosen.encoder
    by = target if encoder is None else encoder.title
    log_event(_LOG, logging.INFO, "images: %(encoder)s: %(why)s", encoder=by, why=chosen.why)
    if encoder is None:
        return engine
    open_images: Callable[[], VisionEngine] = partial(encoder.open, bundle.folder, bundle.spec, device)
    if optional:
        open_images = partial(_open_or, engine, open_images, by)
    prompts = of_prompts.part.name if of_prompts.part else None
    return PairedEngine(engine, open_images, named_pair(target, images=by, prompts=prompts))


def _open_or(engine: Engine, open_images: Callable[[], VisionEngine], encoder: str) -> VisionEngine:
    """What encodes images; the engine that answers where a library turns out not to load, as nobody asked for it."""
    try:
        return open_images()
    except CapabilityError as error:
        message = "images are not encoded by %(encoder)s: %(reason)s"
        log_event(_LOG, logging.WARNING, message, encoder=encoder, reason=str(error))
        return engine


def _open_engine(bundle: Bundle, target: str | None, device: Device) -> Engine:
    name = bundle.target(target)
    return registry.open_engine(bundle.folder, name, bundle.spec, device)


def _open_reference(bundle: Bundle, model: str | None, device: Device) -> Engine:
    from r1v_export.reference.open_reference import open_reference

    return open_reference(bundle, model, device)
