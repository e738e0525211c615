"""The parity gate of a build: a target's engine compared, its reports written, a failure raised behind them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from r1v_export.bundle import GRAPHS
from r1v_export.manifest import WORK_FOLDER
from r1v_export.parity.options import PAIRS
from r1v_export.parity.report import write_reports
from r1v_export.pipeline.decoder_gate import compare_decoder, encoder_of
from r1v_export.pipeline.gate_stage import (
    compared_share,
    why_decoder_is_not_compared,
    why_images_are_not_compared,
)
from r1v_export.pipeline.image_gate import compare_images
from r1v_export.pipeline.parity_gate import (
    GateRun,
    GeneratedQuestions,
    check_options,
    gate_names,
    require_calibrated_scales,
)
from r1v_export.pipeline.report_provenance import of_build
from r1v_export.pipeline.stage import StageInputs
from r1v_export.progress import ProgressCallback, subrange
from r1v_export.targets.decoders import decoder_part
from r1v_export.targets.images import encoders_here

if TYPE_CHECKING:
    from r1v_export.parity.schema import ParityReport
    from r1v_export.pipeline.stages import Build


def check_engine(job: Build, target: str, folder: Path, inputs: StageInputs, on_progress: ProgressCallback) -> None:
    """Compare a target's engine with PyTorch, and write the reports into a folder.

    Raises:
        ParityError: a gate failed, or a graph holds other scales than the calibration.
    """
    require_calibrated_scales(job.out / GRAPHS, job.artifact)
    parity, streamed = job.config.parity, job.gate(target) == "streamed"
    longest = parity.streamed_reply_tokens if streamed else parity.max_new_tokens
    options = check_options(job.config, target, job.checkpoint.spec, job.artifact, max_new_tokens=longest)
    questions = GeneratedQuestions(job.checkpoint, parity.streamed_questions if streamed else parity.questions)
    encoders = [] if why_images_are_not_compared(job, target) else encoders_here(job.out, target)
    run = GateRun(job.out, target, job.checkpoint, job.artifact, job.config.device)
    recipe = job.artifact.recipe if job.artifact else None
    gates = [replace(options, gate=gate) for gate in gate_names(recipe, options.own_weights)]
    share = compared_share(job, target)
    comparing = subrange(on_progress, 0.0, share)
    reports: list[ParityReport]
    if streamed:
        reports = run.streamed(questions, gates, job.out / WORK_FOLDER / f"{target}-streamed-gate", comparing)
    else:
        decoder = None if why_decoder_is_not_compared(job, target) else decoder_part(job.out, target)
        count = len(gates) + bool(encoders) + (decoder is not None)
        parts = [subrange(comparing, i / count, (i + 1) / count) for i in range(count)]
        reports = [run.whole(questions, gate, part) for gate, part in zip(gates, parts[: len(gates)], strict=True)]
        by_images = None
        if encoders:
            by_images = compare_images(run, questions, options, job.config, encoders, parts[len(gates)])
            reports.append(by_images)
        if decoder is not None:
            encoder = encoder_of(by_images, target, encoders)
            of_decoder = compare_decoder(run, questions, options, job.config, encoder, decoder, parts[-1])
            reports += [of_decoder] if of_decoder else []
    provenance = of_build(job.label, target, job.config.device, job.source_files(), inputs)
    written = [report.model_copy(update={"provenance": provenance}) for report in reports]
    on_progress(share, 1.0, "writing pages")
    write_reports(written, folder)
    for report in written:
        # What another part computes wrongly is left to this one, see `image_verdicts`.
        if report.gate not in PAIRS:
            report.raise_if_failed()
