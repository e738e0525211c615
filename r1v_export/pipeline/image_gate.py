"""The gate `images`: an engine compared with PyTorch while another part encodes its images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

from r1v_export.config import BuildConfig, Compute
from r1v_export.log_event import log_event
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.samples import ParitySample
from r1v_export.parity.schema import ParityReport
from r1v_export.pipeline.parity_gate import GateRun, check_options
from r1v_export.progress import ProgressCallback, subrange
from r1v_export.targets.images import ImageEncoder

_LOG = logging.getLogger(__name__)


def compare_images(
    run: GateRun,
    samples: Iterable[ParitySample],
    options: CheckOptions,
    config: BuildConfig,
    encoders: Sequence[ImageEncoder],
    on_progress: ProgressCallback,
) -> ParityReport:
    """Compare an engine whose images another part encodes, by each encoder in turn until one keeps the limits, which
    are the looser ones of both.

    Args:
        options: of the engine's own gates.
        config: of the bundle.

    Returns:
        The report of the last one.
    """
    for index, encoder in enumerate(encoders):
        part = subrange(on_progress, index / len(encoders), (index + 1) / len(encoders))
        of_pair = image_options(options, config, run, encoder)
        report = run.whole(samples, of_pair, part, encoder)
        if report.first_bad is None or encoder is encoders[-1]:
            break
        message = "images by %(encoder)s are out of tolerance at %(first_bad)s: comparing %(next)s"
        fields = {"encoder": encoder.title, "first_bad": report.first_bad, "next": encoders[index + 1].title}
        log_event(_LOG, logging.INFO, message, **fields)
    return report


def image_options(options: CheckOptions, config: BuildConfig, run: GateRun, encoder: ImageEncoder) -> CheckOptions:
    """What chooses the limits of an engine whose images another one encodes: the looser ones of both.

    Args:
        options: of the engine's own gates.
        config: of the bundle.
    """
    spec, tokens = run.checkpoint.spec, options.max_new_tokens
    pair = check_options(config, run.target, spec, run.artifact, max_new_tokens=tokens, vision_target=encoder.name)
    int8 = encoder.products == "int8"
    return replace(
        pair,
        gate="images",
        compute=max(options.compute, encoder.compute(config, spec), key=get_args(Compute).index),
        quantized_inputs=pair.quantized_inputs or int8,
        rounds_images=int8,
        own_weights=options.own_weights,
        blocks=options.blocks,
        measure_latency=options.measure_latency,
    )
