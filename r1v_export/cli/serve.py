"""`r1v-export serve`: an OpenAI-compatible server over a bundle."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from r1v_export.cli.logs import JsonFormatter, say
from r1v_export.cli.other_targets import other_targets_options
from r1v_export.cli.output import (
    LIBRARY_S_LOOP,
    Number,
    WholeNumber,
    cache_mib_option,
    common_options,
    device_option,
    draft_tokens_option,
    engine_option,
    image_cache_mib_option,
    max_rows_option,
    model_option,
    print_json,
    refuse_given,
    refuse_unread_model,
    target_option,
)
from r1v_export.cli.paths import OptionPath
from r1v_export.cli.threads import threads_option
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.extras import install_command

if TYPE_CHECKING:
    from r1v_export.config import Device
    from r1v_export.runner.batching.options import BatchingOptions
    from r1v_export.serve.backend import Backend

API_KEYS_VARIABLE = "R1V_EXPORT_API_KEYS"
_MIB = 1 << 20
_MAX_IMAGES = 1024
_ENGINE_OPTIONS = (
    *("max_rows", "max_queued", "cache_mib", "image_cache_mib", "prefill_chunk", "draft_tokens"),
    *("target", "vision_target", "decoder_target", "engine", "model", "device", "threads"),
)
"""Parameters that are the engine's."""


@click.command(short_help="Serve a bundle to OpenAI clients.")
@click.argument("bundle", type=OptionPath())
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option(
    "--port", type=WholeNumber(0, 65535), default=8000, show_default=True, help="Port to listen on; 0 takes a free one."
)
@click.option(
    "--served-model-name", metavar="NAME", help="The model's name for clients. [default: the bundle's folder]"
)
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    metavar="KEY",
    help=f"Key that clients must send; repeat for several. [also ${API_KEYS_VARIABLE}, by commas]",
)
@click.option(
    "--allow-image-host",
    "image_hosts",
    multiple=True,
    metavar="HOST",
    help="Fetch images with http(s) URLs from this host; repeat for several.",
)
@max_rows_option
@click.option(
    "--max-queued",
    type=WholeNumber(min=1),
    default=256,
    show_default=True,
    help="Requests that wait, at most; more get status 429.",
)
@cache_mib_option
@image_cache_mib_option
@click.option(
    "--prefill-chunk",
    type=WholeNumber(min=1),
    show_default="160 or 256 with --device cpu, else 512",
    help="Prompt tokens between two decoder steps, at most; fewer make streams smoother.",
)
@draft_tokens_option
@click.option(
    "--max-body-mib", type=WholeNumber(min=1), default=64, show_default=True, help="MiB of a request, at most."
)
@click.option(
    "--max-images",
    type=WholeNumber(0, _MAX_IMAGES),
    default=16,
    show_default=True,
    help="Images in a request, at most.",
)
@click.option(
    "--max-image-pixels",
    type=WholeNumber(1, 80_000_000),
    default=80_000_000,
    show_default=True,
    help="Pixels of an image, at most.",
)
@click.option(
    "--max-new-tokens", type=WholeNumber(min=1), help="Tokens of an answer, at most. [default: the model's context]"
)
@click.option(
    "--max-seconds", type=Number(min=0.001), default=600, show_default=True, help="Seconds that an answer may take."
)
@click.option(
    "--drain-seconds",
    type=Number(min=0),
    default=30,
    show_default=True,
    help="Seconds for open requests after SIGTERM.",
)
@click.option(
    "--access-log/--no-access-log",
    default=True,
    show_default=True,
    help="Print a JSON line for each request on stdout.",
)
@click.option("--triton", metavar="URL", help="Let a Triton server answer: grpc://HOST:PORT. [see deploy triton]")
@target_option
@other_targets_options
@engine_option
@model_option
@device_option
@threads_option
@common_options
@click.pass_context
def command(
    context: click.Context,
    bundle: Path,
    host: str,
    port: int,
    served_model_name: str | None,
    api_keys: tuple[str, ...],
    image_hosts: tuple[str, ...],
    max_rows: int,
    max_queued: int,
    cache_mib: int,
    image_cache_mib: int,
    prefill_chunk: int | None,
    draft_tokens: int,
    max_body_mib: int,
    max_images: int,
    max_image_pixels: int,
    max_new_tokens: int | None,
    max_seconds: float,
    drain_seconds: float,
    access_log: bool,
    triton: str | None,
    target: str | None,
    vision_target: str,
    decoder_target: str,
    engine: str | None,
    model: str | None,
    device: Device,
    format_: str,
) -> None:
    """Serve BUNDLE over HTTP to OpenAI clients, with a page for people at /.

    \b
    /v1/chat/completions  /v1/completions  /v1/models
    /tokenize  /health (alive)  /metrics (Prometheus)
    /ready (a real token was produced)

    With --triton, no engine is opened: BUNDLE is the one that was deployed, or a folder with its pipeline.json and
    tokenizer files.

    \f
    Raises:
        UsageError: --triton with an option that has no effect then.
        CapabilityError: a package is missing, or the port is taken.
    """
    _require_packages()
    from r1v_export.runner.batching.options import BatchingOptions
    from r1v_export.serve.app import create_app
    from r1v_export.serve.server import run_server
    from r1v_export.serve.settings import Limits, ServerSettings

    _refuse_blank(served_model_name, host)
    limits = Limits(max_body_mib * _MIB, max_images, max_image_pixels, max_new_tokens, max_seconds)
    settings = ServerSettings(
        model=served_model_name or bundle.resolve().name,
        api_keys=_api_keys(api_keys),
        image_hosts=tuple(_host(name) for name in image_hosts),
        limits=limits,
    )
    if engine is not None:
        refuse_given(context, ("cache_mib", "prefill_chunk", "draft_tokens"), LIBRARY_S_LOOP, "omit it")
    if triton is None:
        refuse_unread_model(target)
        bytes_ = cache_mib * _MIB, image_cache_mib * _MIB
        options = BatchingOptions(max_rows, max_queued, *bytes_, prefill_chunk=prefill_chunk, draft_tokens=draft_tokens)
        backend, notes = _own_loop(bundle, target, (vision_target, decoder_target), model, device, engine, options)
    else:
        fix = "omit it; `r1v-export deploy triton` has those of the deployment"
        refuse_given(context, _ENGINE_OPTIONS, "with --triton, whose server runs the engine", fix)
        backend, notes = _triton_backend(bundle, triton), ()

    def announce(url: str) -> None:
        if format_ == "json":
            print_json({"url": url, "model": settings.model})
        else:
            say(f"serving {settings.model} at {url} (page), {url}/v1 (OpenAI API)")
        for note in notes:
            say(note)
        if triton is not None:
            _warn_of_no_listener(triton, url)

    with _access_log(access_log):
        try:
            run_server(create_app(backend, settings), host, port, announce, drain_seconds)
        except OSError as error:
            raise CapabilityError(
                "The server cannot listen.",
                where=f"{host}:{port}",
                found=error.strerror or error,
                fix="choose another --port (0 for a free one), or another --host",
            ) from error


def _own_loop(
    bundle: Path,
    target: str | None,
    others: tuple[str, str],
    model: str | None,
    device: Device,
    engine: str | None,
    options: BatchingOptions,
) -> tuple[Backend, Sequence[str]]:
    """The backend, and what people should know of what encodes images and what decodes.

    Args:
        others: `--vision-target` and `--decoder-target`.
    """
    from r1v_export.runner.batching.batching_runner import BatchingRunner
    from r1v_export.runner.open_runner import open_runner

    runner = open_runner(bundle, target, model, device, engine, False, *others, serving=True)
    notes = [note for note in (runner.image_note, runner.decoder_note) if note is not None]
    return BatchingRunner(runner, options), notes


def _triton_backend(bundle: Path, url: str) -> Backend:
    from r1v_export.deploy.triton.backend import TritonBackend
    from r1v_export.processing.pipeline_document import open_files
    from r1v_export.runner.prompt_encoder import PromptEncoder

    tokenizer, pipeline = open_files(bundle, keep=True)
    return TritonBackend(url, PromptEncoder(tokenizer, pipeline, pipeline.positions.max_positions))


def _warn_of_no_listener(triton: str, url: str) -> None:
    """Say that no Triton server listens yet; one may be started later."""
    from r1v_export.deploy.triton.backend import listens

    if not listens(triton):
        say(f"warning: nothing listens at {triton} yet; {url}/ready says when the deployment's tritonserver answers")


def _refuse_blank(model_name: str | None, host: str) -> None:
    """
    Raises:
        UsageError: the name would be empty, or the server listen on every interface unasked.
    """
    if model_name is not None and not model_name.strip():
        fix = "give a name, or omit it"
        raise UsageError("The model's name is blank.", where="--served-model-name", expected="a text", fix=fix)
    if not host.strip():
        fix = "give an address, such as 127.0.0.1, or omit it; 0.0.0.0 is every one"
        raise UsageError("The address to listen on is blank.", where="--host", expected="an address", fix=fix)


def _require_packages() -> None:
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        what, found = "The server's packages are not installed.", f"no {', '.join(missing)}"
        raise CapabilityError(what, found=found, fix=install_command("serve"))


def _host(name: str) -> str:
    """A host as URLs have it."""
    if re.fullmatch(r"[A-Za-z0-9.-]+|[0-9a-fA-F:]+", name) is None:
        fix = "give the host alone, as it stands in URLs between // and the next /"
        raise UsageError("This is no host.", where="--allow-image-host", expected="example.com", found=name, fix=fix)
    return name.lower()


@contextmanager
def _access_log(wanted: bool) -> Iterator[None]:
    """A line on stdout for each request, while the server runs."""
    if not wanted:
        yield
        return
    logger, handler = logging.getLogger("r1v_export.serve.gate"), logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _api_keys(given: Sequence[str]) -> tuple[str, ...]:
    """Keys of the option and of the environment.

    Raises:
        UsageError: a key is blank, or the variable has commas and no key: the server would let everybody in.
    """
    variable = os.environ.get(API_KEYS_VARIABLE, "")
    named = tuple(key.strip() for key in variable.split(",") if key.strip())
    blank = (
        "--api-key" if not all(key.strip() for key in given) else API_KEYS_VARIABLE if variable and not named else ""
    )
    if blank:
        raise UsageError("The API key is blank.", where=blank, expected="a text", fix="give a key, or omit it")
    return (*given, *named)
