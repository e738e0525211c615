"""Writes a deployment: the model repository, a copy of the bundle, and what starts it in a container or a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from r1v_export.bundle import Bundle
from r1v_export.config import Device
from r1v_export.deploy.folder import fill_templates, require_new, write_text
from r1v_export.deploy.libr1v import libr1v_target
from r1v_export.deploy.triton.model_config import Backend, ModelConfig
from r1v_export.deploy.triton.models.python_backend import (
    BUNDLE,
    CACHE_MIB,
    DEVICE,
    ENGINE,
    ENGINE_FOLDER,
    IMAGE_CACHE_MIB,
    MAX_ROWS,
    TARGET,
    TILES_AT_ONCE,
    VISION_TARGET,
)
from r1v_export.deploy.triton.tensors import LLM, MODELS, ORCHESTRATOR, PREPROCESS, VISION, inputs_of, outputs_of
from r1v_export.errors import UsageError
from r1v_export.files import link_or_copy, require_writable
from r1v_export.runner.open_runner import refuse_named
from r1v_export.targets import registry
from r1v_export.targets.images import AUTO, ImageEncoder, choose
from r1v_export.targets.interface import Decodes
from r1v_export.version import VERSION

MODELS_FOLDER, BUNDLE_FOLDER = "models", "bundle"
TEMPLATES, README = Path(__file__).parent / "templates", Path(__file__).parent / "readme"
TRITON_RELEASE = "25.10"
"""Tag of the NGC image. Its Python is 3.12, and its TensorRT 10.13 is the one that the extra `tensorrt-llm` pins."""

_MODULES = {ORCHESTRATOR: "orchestrator", PREPROCESS: "preprocess", VISION: "vision", LLM: "llm"}

_MODEL_FILE = '''"""{name}: see r1v_export/deploy/triton/models/{module}.py."""

from r1v_export.deploy.triton.models.{module} import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class TritonOptions:
    """How a bundle runs in Triton.

    Attributes:
        target: an engine of the bundle; its first one by default.
        vision_target: what encodes images, as `open_runner` has it; libr1v has ONNX Runtime's parts alone.
        engine: lets the target's own library decode: a folder of `r1v-export engine`, or `llm-api`.
        device: where engines run.
        max_rows: requests that are answered together.
        cache_mib: of the key-value cache.
        image_cache_mib: of the embeddings that are kept of images shown again.
        tiles: that go through the vision graph together, of all requests.
        preprocessors: processes, or threads of libr1v, that read images and make tokens.
        backend: of Triton. With libr1v's own, `r1v` is the only model: the stages are within it, and so is their
            batching.
    """

    target: str | None = None
    vision_target: str = AUTO
    engine: str | None = None
    device: Device = "cpu"
    max_rows: int = 16
    cache_mib: int = 2048
    image_cache_mib: int = 256
    tiles: int = 16
    preprocessors: int = 2
    backend: Backend = "python"


def write_repository(bundle: Bundle, out: Path, options: TritonOptions) -> list[Path]:
    """Write a deployment, and return its files but for the bundle's.

    Args:
        out: a folder that does not exist, or is empty.

    Raises:
        UsageError: `out` holds something, or the bundle has no such target.
        BundleError: the engine is another bundle's.
    """
    require_new(out, bundle.folder)
    target, gpus = _target(bundle, options)
    encoder = _encoder(bundle, target, options)
    require_writable(out, "name another one with -o")
    written = []
    for config in model_configs(bundle, options, target):
        folder = out / MODELS_FOLDER / config.name
        written += [write_text(folder / "config.pbtxt", config.pbtxt()), _write_version(folder / "1", config)]
    facts = _facts(options, target, encoder, gpus)
    for templates in ("shared", options.backend):
        written += fill_templates(TEMPLATES / templates, out, facts)
    shutil.copytree(bundle.folder, out / BUNDLE_FOLDER, copy_function=link_or_copy)
    if options.engine is not None and _is_folder(options.engine):
        shutil.copytree(options.engine, out / ENGINE_FOLDER, copy_function=link_or_copy)
    return written


def _write_version(folder: Path, config: ModelConfig) -> Path:
    """The only version of a model: Python's code, or an empty folder but for what keeps it."""
    if config.backend != "python":
        return write_text(folder / ".keep", "")
    module = _MODULES[config.name]
    return write_text(folder / "model.py", _MODEL_FILE.format(name=config.name, module=module))


def _target(bundle: Bundle, options: TritonOptions) -> tuple[str, int]:
    """The target that a deployment runs, and how many GPUs it takes.

    Raises:
        UsageError: a library decodes it by itself, and there is no engine for it; or engine and target do not match;
            or libr1v does not run it; or the bundle has no such target.
        BundleError: the engine is another bundle's.
    """
    if options.backend == "r1v":
        return libr1v_target(bundle, options.target), int(options.device == "cuda")
    if options.engine is not None:
        decodes = registry.decoding_target(bundle, options.target, options.engine)
        return decodes.name, decodes.check_engine(bundle, options.engine)
    name = bundle.target(options.target)
    found = registry.get_target(name)
    if isinstance(found, Decodes):
        raise UsageError(
            f"The library of {name} decodes by itself, from an engine.",
            where="--engine",
            expected=found.engine_syntax,
            found="nothing",
            fix=f"pass --engine, or another of the bundle's targets with --target: {', '.join(bundle.targets)}",
        )
    return name, int(options.device == "cuda")


def _encoder(bundle: Bundle, target: str, options: TritonOptions) -> ImageEncoder | None:
    """What is to encode images instead of the engine that answers; None too where that is found out in the container.

    Raises:
        UsageError: what is to encode images is not in the bundle, or not for what answers.
    """
    if options.vision_target == AUTO:
        return None
    if options.engine is not None:
        refuse_named(options.vision_target, None)
    encoder = choose(bundle, target, options.vision_target, options.device).encoder
    if options.backend == "r1v" and encoder is not None and encoder.name != target:
        raise UsageError(
            "libr1v encodes images by the target that answers.",
            where=f"--vision-target {options.vision_target}",
            expected=f"{AUTO}, {target}, or a part of it",
            found=encoder.name,
            fix="omit it, or use --backend python",
        )
    return encoder


def model_configs(bundle: Bundle, options: TritonOptions, target: str) -> Iterator[ModelConfig]:
    """The configuration of each model. Names and tensors are the same for every target."""
    sizes = bundle.contract.sizes
    shared = {BUNDLE: f"../{BUNDLE_FOLDER}", TARGET: target, DEVICE: options.device}
    if options.engine is not None:
        shared[ENGINE] = f"../{ENGINE_FOLDER}" if _is_folder(options.engine) else options.engine
    images = {IMAGE_CACHE_MIB: str(options.image_cache_mib)}
    encodes = {VISION_TARGET: options.vision_target} if options.engine is None else {}
    batching = {MAX_ROWS: str(options.max_rows), CACHE_MIB: str(options.cache_mib)}
    if options.backend == "r1v":
        yield ModelConfig(
            ORCHESTRATOR,
            inputs_of(ORCHESTRATOR, sizes),
            outputs_of(ORCHESTRATOR, sizes),
            decoupled=True,
            instances=options.preprocessors,  # of one engine, which they share: an instance only reads requests
            parameters={**shared, **encodes, **batching, **images},
            backend=options.backend,
        )
        return
    own = {ORCHESTRATOR: {TILES_AT_ONCE: str(options.tiles), **images}, VISION: encodes, LLM: batching}
    for name in MODELS:
        yield ModelConfig(
            name,
            inputs_of(name, sizes),
            outputs_of(name, sizes),
            max_batch_size=options.tiles if name == VISION else 0,
            queue_delay_us=2000 if name == VISION else None,
            decoupled=name in (ORCHESTRATOR, LLM),
            instances=options.preprocessors if name == PREPROCESS else 1,
            # A library takes as many GPUs as its engine has ranks, from one process.
            on_gpu=options.device == "cuda" and (name == VISION or (name == LLM and options.engine is None)),
            parameters={**shared, **own.get(name, {})},
        )


def _facts(options: TritonOptions, target: str, encoder: ImageEncoder | None, gpus: int) -> dict[str, str]:
    """What templates say in the place of @name@."""
    extras = [*registry.get_target(target).runtime_extras(options.device)]
    if encoder is not None and encoder.name != target:
        device = options.device if encoder.folder is None else "cpu"
        extras += registry.get_target(encoder.name).runtime_extras(device)
    return {
        "start": (README / f"{options.backend}.md").read_text("utf-8"),  # first: it names facts, too
        "release": TRITON_RELEASE,
        "version": VERSION,
        "target": target,
        "extras": ",".join(dict.fromkeys(extras)),
        "devices": f"[{{ driver: nvidia, count: {gpus}, capabilities: [gpu] }}]" if gpus else "[]",
        "gpus": str(gpus),
        "shared_memory": "2Gi" if options.backend == "python" else "",
        "copy_engine": f"COPY {ENGINE_FOLDER} /deployment/{ENGINE_FOLDER}\n" if _is_folder(options.engine) else "",
    }


def _is_folder(engine: str | None) -> bool:
    """Whether the engine is files; else its name says all."""
    return engine is not None and Path(engine).is_dir()
