"""Medians of one question asked several times."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from r1v_export.cpus import thread_count
from r1v_export.generation import Sampling
from r1v_export.processing.preprocess import pixel_values
from r1v_export.processing.synthetic_image import synthetic_image
from r1v_export.progress import Progress
from r1v_export.runner.base import BaseRunner
from r1v_export.runner.prompt_encoder import Request

STAGES = ("preprocess_ms", "vision_ms", "projector_ms", "embed_ms", "prefill_ms", "decode_ms")


class Measurement(TypedDict):
    """Medians of some runs, as plain values for JSON."""

    engine: str
    threads: dict[str, Any]
    """Of `cpus.thread_count`."""
    tiles: int
    prompt_tokens: int
    new_tokens: int
    runs: int
    stages_ms: dict[str, float]
    """By name of STAGES."""
    first_token_ms: float
    tokens_per_s: float
    """After the first token."""
    peak_memory_bytes: int
    """Of this process."""


def measure(
    runner: BaseRunner, image: Image.Image | None, question: str, tokens: int, runs: int, progress: Progress
) -> Measurement:
    """Ask once to warm up, then `runs` times.

    Args:
        image: the image; a synthetic one if None.
        tokens: new tokens of every answer, whatever the model would like: stop tokens do not stop it.
    """
    side = runner.tiling.tile_size
    image = image or synthetic_image(np.random.default_rng(0), side, side)
    request, sampling = Request.ask(question, image), Sampling(max_new_tokens=tokens, ignore_eos=True)
    answers = []
    with progress.stage("bench") as task:
        for done in range(1, runs + 2):
            answers.append(runner.answer(request, sampling))
            task.report(done, runs + 1)
    measured = answers[1:]
    return {
        "engine": runner.name,
        "threads": asdict(thread_count()),
        "tiles": len(pixel_values([image], runner.tiling)[0]),
        "prompt_tokens": measured[0].prompt_tokens,
        "new_tokens": len(measured[0].token_ids),
        "runs": runs,
        "stages_ms": {stage: _median([getattr(answer.timings, stage) for answer in measured]) for stage in STAGES},
        "first_token_ms": _median([answer.timings.first_token_ms for answer in measured]),
        "tokens_per_s": _median([answer.timings.decode_steps_per_s for answer in measured]),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def peak_memory_bytes() -> int:
    """The most memory that this process had resident.

    On Linux, `ru_maxrss` would be at least what the process that started this one had resident.
    """
    status = Path("/proc/self/status")
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.is_file() else {}
    if "VmHWM" in fields:
        return int(fields["VmHWM"].removesuffix("kB")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)
