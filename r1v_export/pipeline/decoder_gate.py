"""The gate `decoder`: an engine compared with PyTorch while another one decodes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

from r1v_export.config import BuildConfig, Compute
from r1v_export.errors import CapabilityError
from r1v_export.log_event import log_event
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.samples import ParitySample, with_a_prompt_of
from r1v_export.parity.schema import ParityReport
from r1v_export.pipeline.image_gate import image_options
from r1v_export.pipeline.parity_gate import GateRun
from r1v_export.progress import ProgressCallback
from r1v_export.targets.decoders import DecoderPart, lending_target
from r1v_export.targets.images import ImageEncoder, named_pair

_LOG = logging.getLogger(__name__)


def compare_decoder(
    run: GateRun,
    samples: Iterable[ParitySample],
    options: CheckOptions,
    config: BuildConfig,
    encoder: ImageEncoder | None,
    decoder: DecoderPart,
    on_progress: ProgressCallback,
    *,
    optional: bool = True,
) -> ParityReport | None:
    """Compare an engine for which another one decodes, by the looser limits of both.

    Args:
        options: of the engine's own gates.
        config: of the bundle.
        encoder: what encodes images at the same time; None for the engine itself.
        optional: compare nothing where the library turns out to lack what it takes.

    Returns:
        None where nothing was compared.

    Raises:
        CapabilityError: the library lacks what it takes, and the comparison is not optional.
    """
    alone = options if encoder is None else image_options(options, config, run, encoder)
    compute = max(alone.compute, decoder.compute, key=get_args(Compute).index)
    rounding = tuple(dict.fromkeys((*(alone.rounding or (run.target,)), decoder.name)))
    of_pair = replace(alone, gate="decoder", compute=compute, rounding=rounding, one_sequence=True)
    asked = with_a_prompt_of(lending_target(decoder.name).prompt_tokens, samples, run.checkpoint.spec)
    try:
        return run.whole(asked, of_pair, on_progress, encoder, decoder)
    except CapabilityError as error:
        if not optional:
            raise
        message = "the decoder of %(by)s is not compared: %(reason)s"
        log_event(_LOG, logging.WARNING, message, by=decoder.name, reason=str(error))
        return None


def encoder_of(report: ParityReport | None, target: str, encoders: Sequence[ImageEncoder]) -> ImageEncoder | None:
    """What encodes images by default after the gate `images`: that which it passed, if any did.

    Args:
        report: of that gate; None where it did not run.
        encoders: that it compared.
    """
    if report is None or report.first_bad is not None:
        return None
    named = {named_pair(target, images=encoder.title): encoder for encoder in encoders}
    return named.get(report.candidate)
