"""A bundle made ready to answer questions."""

from __future__ import annotations

from pathlib import Path

from r1v_export.bundle import Bundle
from r1v_export.config import Device
from r1v_export.contract import Engine, VisionEngine
from r1v_export.errors import UsageError
from r1v_export.processing.pipeline_document import open_files
from r1v_export.runner.base import TILES_PER_RUN, BaseRunner
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.generator_runner import GeneratorRunner
from r1v_export.runner.paired_engine import PairedEngine
from r1v_export.serialized.pipeline import PipelineDocument
from r1v_export.targets import registry

PYTORCH = "pytorch"
"""The target that is the reference itself, with the weights of the checkpoint."""


def open_runner(
    folder: Path,
    target: str | None = None,
    model: str | None = None,
    device: Device = "cpu",
    engine: str | None = None,
    grounding: bool = False,
    vision_target: str | None = None,
) -> BaseRunner:
    """A runner over one of the bundle's engines, over PyTorch, or over a library that decodes by itself.

    Args:
        target: an engine of the bundle, or `pytorch`; its first engine when None.
        model: where the checkpoint is, for `pytorch`, when the bundle was built from a folder.
        engine: lets a target's own library decode: a folder of `r1v-export engine`, or `llm-api`.
        grounding: let `<ref>`, `<box>` and `<quad>` through in questions and answers.
        vision_target: another engine of the bundle, which encodes images.

    Raises:
        UsageError: target and engine do not match, the bundle has no such target, or `vision_target` is named with an
            engine that brings its own.
        BundleError: no whole bundle.
        CapabilityError: what the engine needs is not here.
    """
    bundle = Bundle.open(folder)
    tokenizer, pipeline = open_files(folder)
    if grounding:
        tokenizer = tokenizer.with_grounding(piece.token for piece in pipeline.prompt.grounding_tokens)
    if engine is not None:
        if vision_target is not None:
            raise UsageError(
                "An engine whose library decodes encodes images itself.",
                where="--vision-target --engine",
                fix="omit one of the two options",
            )
        generator, vision, tiles = registry.open_generator(bundle, target, engine, device, TILES_PER_RUN)
        return GeneratorRunner(generator, vision, tokenizer, pipeline, bundle.contract.sizes.hidden, tiles)
    opened = _open_reference(bundle, model, device) if target == PYTORCH else _open_engine(bundle, target, device)
    if vision_target is not None:
        opened = PairedEngine(opened, _open_engine(bundle, vision_target, device), vision_target)
    return EngineRunner(opened, tokenizer, pipeline)


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


def _open_engine(bundle: Bundle, target: str | None, device: Device) -> Engine:
    name = bundle.target(target)
    return registry.open_engine(bundle.folder, name, bundle.spec, device)


def _open_reference(bundle: Bundle, model: str | None, device: Device) -> Engine:
    from r1v_export.reference.open_reference import open_reference

    return open_reference(bundle, model, device)
