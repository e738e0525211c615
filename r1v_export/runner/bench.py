"""One question asked several times, by one sequence or by several at once: times, their percentiles, and the load."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from r1v_export.count import Count
from r1v_export.cpus import thread_count
from r1v_export.errors import UsageError
from r1v_export.generation import Sampling
from r1v_export.model_spec import TilingSpec
from r1v_export.processing.synthetic_image import synthetic_image
from r1v_export.processing.tiling import grids, tile_count
from r1v_export.progress import Progress
from r1v_export.runner.answer import Answer
from r1v_export.runner.base import BaseRunner
from r1v_export.runner.prompt_encoder import Request

STAGES = ("read_ms", "preprocess_ms", "vision_ms", "projector_ms", "embed_ms", "prefill_ms", "decode_ms")

PERCENTILES = (50, 90, 99)
"""Linear between the two nearest values."""

_IDLE = ("idle", "iowait", "guest", "guest_nice")
"""Of the CPU times of a machine: no work, or counted as that of another kind already."""


class MeasuredAnswer(TypedDict):
    """One answer as it was measured."""

    prompt_tokens: int
    reused_tokens: int
    """Of the prompt's, taken from another's cache."""
    token_ms: list[float]
    """When each token came, from the beginning of its run."""
    stages_ms: dict[str, float]
    """By name of STAGES; sequences that are answered together share the time of a step. `read_ms` is that of an image's
    file, from its bytes to pixels: 0 where the image was there before the run."""


class Run(TypedDict):
    """All sequences answered once, beginning at the same moment."""

    total_ms: float
    sequences: list[MeasuredAnswer]


class Distribution(TypedDict):
    """Percentiles of some values; None where there are no values."""

    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None
    values: int
    """How many."""


class MeasuredImage(TypedDict):
    """What was asked about."""

    width: int
    """In pixels, as is `height`."""
    height: int
    source: str
    """`file`: read from its file in every run; `memory`: decoded before the first; `synthetic`: made before it."""


class Load(TypedDict):
    """What the machine did while it was measured, the warm-up not included."""

    cpus: int
    own_cpus: float
    """CPUs that this process kept busy, on average."""
    other_cpus: float
    """CPUs that all other processes kept busy."""
    load_average: list[float]
    """Of the minute before, and of the last one."""


class Measurement(TypedDict):
    """Some runs, summarized, and their raw numbers; as plain values for JSON."""

    engine: str
    threads: dict[str, Any]
    """Of `cpus.thread_count`."""
    batch: int
    """Sequences at once."""
    image: MeasuredImage
    tiles: int
    """Of the image, its thumbnail included."""
    prompt_tokens: int
    new_tokens: int
    """Of the shortest answer."""
    runs: int
    stages_ms: dict[str, float]
    """By name of STAGES: medians over all sequences."""
    first_token_ms: float
    """Median, from the beginning of a run."""
    tokens_per_s: float
    """Of one sequence after its first token; median."""
    total_tokens_per_s: float
    """New tokens of all sequences over the time of a run, from its beginning; median."""
    latency_ms: dict[str, Distribution]
    """Over all sequences of all runs. `first_token` and `last_token`, from the beginning of a run, that is from the
    question; `time_per_output_token`: a sequence's mean after its first token;
    `inter_token`: from one token to the next."""
    load: Load
    peak_memory_bytes: int
    """Of this process."""
    warm_up: Run
    raw: list[Run]


Opener = Callable[[], Image.Image]
"""Gives the image to ask about, as a user would: from its file."""


def measure(
    runner: BaseRunner,
    image: Image.Image | Opener | None,
    question: str,
    tokens: int,
    runs: int,
    progress: Progress,
    batch: int = 1,
    tiles: int = 1,
) -> Measurement:
    """Ask once to warm up, then `runs` times.

    Args:
        image: the image, or what opens it, which then is part of every run; a synthetic one for each sequence if None.
        tokens: new tokens of every answer, whatever the model would like: stop tokens do not stop it.
        batch: sequences at once, all of which begin together.
        tiles: of a synthetic image, its thumbnail included.

    Raises:
        UsageError: prompt and answer do not fit into the model's context, or no image has so many tiles.
    """
    openers = _openers(image, runner.tiling, batch, tiles)
    first = openers[0]()
    source = "synthetic" if image is None else "memory" if isinstance(image, Image.Image) else "file"
    _require_room(runner, Request.ask(question, first), tokens)
    sampling = Sampling(max_new_tokens=tokens, ignore_eos=True)
    with progress.stage("bench") as task:
        warm_up = _run(runner, question, openers, sampling)
        task.report(1, runs + 1)
        watch = _LoadWatch()
        measured = []
        for done in range(1, runs + 1):
            measured.append(_run(runner, question, openers, sampling))
            task.report(done + 1, runs + 1)
        load = watch.load()
    sequences = [sequence for run in measured for sequence in run["sequences"]]
    latency = {name: _distribution(values) for name, values in _latencies(sequences).items()}
    decode_ms, counts = [_decode_ms(sequence) for sequence in sequences], [_new_tokens(run) for run in measured]
    return {
        "engine": runner.name,
        "threads": asdict(thread_count()),
        "batch": batch,
        "image": {"width": first.width, "height": first.height, "source": source},
        "tiles": tile_count(*first.size, runner.tiling),
        "prompt_tokens": sequences[0]["prompt_tokens"],
        "new_tokens": min(len(sequence["token_ms"]) for sequence in sequences),
        "runs": runs,
        "stages_ms": {stage: _median([sequence["stages_ms"][stage] for sequence in sequences]) for stage in STAGES},
        "first_token_ms": latency["first_token"]["p50"] or 0.0,
        # Of medians of times, not medians of rates: of few runs they would contradict the times.
        "tokens_per_s": _per_second(1, decode_ms),
        "total_tokens_per_s": _per_second(statistics.median(counts), [run["total_ms"] for run in measured]),
        "latency_ms": latency,
        "load": load,
        "peak_memory_bytes": peak_memory_bytes(),
        "warm_up": warm_up,
        "raw": measured,
    }


def synthetic_size(tiles: int, tiling: TilingSpec) -> tuple[int, int]:
    """Width and height in pixels of an image that is cut into so many tiles without being scaled.

    Raises:
        UsageError: no image is.
    """
    sizes = [(tiling.tile_size * grid.cols, tiling.tile_size * grid.rows) for grid in grids(tiling)]
    counts = [tile_count(*size, tiling) for size in sizes]
    if tiles not in counts:
        raise UsageError(
            "This model cuts no image into so many tiles.",
            where="--tiles",
            expected="one of " + ", ".join(map(str, sorted(set(counts)))),
            found=tiles,
            fix="pass one of these; the thumbnail that follows several tiles counts",
        )
    wide = [size for size, count in zip(sizes, counts, strict=True) if count == tiles]
    return min(wide, key=lambda size: (abs(size[0] - size[1]), -size[0]))


def _openers(image: Image.Image | Opener | None, tiling: TilingSpec, batch: int, tiles: int) -> list[Opener]:
    """What gives each sequence its image."""
    if image is None:
        size = synthetic_size(tiles, tiling)
        made = [synthetic_image(np.random.default_rng(seed), *size) for seed in range(batch)]
        return [partial(_same, each) for each in made]
    return [partial(_same, image) if isinstance(image, Image.Image) else image] * batch


def _same(image: Image.Image) -> Image.Image:
    return image


def _require_room(runner: BaseRunner, request: Request, tokens: int) -> None:
    """Refuse answers that would be cut off: their number of tokens would not be the one that was asked for."""
    prompt = len(runner.open_prompt(request, runner.image_encoder()).token_ids)
    left = runner.max_positions - prompt
    if tokens > left:
        raise UsageError(
            "An answer of this many tokens does not fit into the model's context.",
            where="--tokens",
            expected=f"at most {left}: the prompt has {Count(prompt, 'token')}, the context {runner.max_positions}",
            found=tokens,
            fix=f"pass --tokens {left}, or fewer" if left > 1 else "ask a shorter question",
        )


def _run(runner: BaseRunner, question: str, openers: Sequence[Opener], sampling: Sampling) -> Run:
    """Answer the question about all images once, and note when each token came."""
    token_ms: list[list[float]] = [[] for _ in openers]
    answers: dict[int, Answer] = {}
    began = time.perf_counter()
    requests, read_ms = [], []
    for opener in openers:
        opened = time.perf_counter()
        requests.append(Request.ask(question, opener()))
        read_ms.append(1000 * (time.perf_counter() - opened))
    for event in runner.generate(requests, sampling, max_rows=len(requests)):
        if event.token_id is not None:
            token_ms[event.request].append(round(1000 * (time.perf_counter() - began), 3))
        if event.answer is not None:
            answers[event.request] = event.answer
    total_ms = round(1000 * (time.perf_counter() - began), 3)
    sequences = [_sequence(answers[index], token_ms[index], read) for index, read in enumerate(read_ms)]
    return {"total_ms": total_ms, "sequences": sequences}


def _sequence(answer: Answer, token_ms: list[float], read_ms: float) -> MeasuredAnswer:
    stages = {stage: getattr(answer.timings, stage) for stage in STAGES[1:]}
    return {
        "prompt_tokens": answer.prompt_tokens,
        "reused_tokens": answer.reused_tokens,
        "token_ms": token_ms,
        "stages_ms": {stage: round(ms, 3) for stage, ms in ({STAGES[0]: read_ms} | stages).items()},
    }


def _latencies(sequences: Sequence[MeasuredAnswer]) -> Mapping[str, list[float]]:
    """The values of `Measurement.latency_ms`; of a library that gives all tokens at once, which spends no time on
    decoding, there are none of a token."""
    timed = [sequence for sequence in sequences if sequence["stages_ms"]["decode_ms"]]
    return {
        "first_token": [sequence["token_ms"][0] for sequence in sequences],
        "last_token": [sequence["token_ms"][-1] for sequence in sequences],
        "time_per_output_token": [_decode_ms(sequence) for sequence in timed],
        "inter_token": [float(gap) for sequence in timed for gap in np.diff(sequence["token_ms"])],
    }


def _decode_ms(sequence: MeasuredAnswer) -> float:
    """Mean time of a token after the first; 0 without one."""
    arrivals = sequence["token_ms"]
    return (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1) if len(arrivals) > 1 else 0.0


def _new_tokens(run: Run) -> int:
    return sum(len(sequence["token_ms"]) for sequence in run["sequences"])


def _distribution(values: Sequence[float]) -> Distribution:
    if not values:
        return {"p50": None, "p90": None, "p99": None, "max": None, "values": 0}
    p50, p90, p99 = (round(float(value), 3) for value in np.percentile(values, PERCENTILES))
    return {"p50": p50, "p90": p90, "p99": p99, "max": round(float(max(values)), 3), "values": len(values)}


class _LoadWatch:
    """Counts the CPU time that this process and all others take from here on."""

    def __init__(self) -> None:
        self._began, self._before, self._average = time.perf_counter(), _cpu_seconds(), _load_average()

    def load(self) -> Load:
        """What was taken since."""
        import psutil

        seconds = time.perf_counter() - self._began
        all_s, own_s = (now - before for now, before in zip(_cpu_seconds(), self._before, strict=True))
        return {
            "cpus": psutil.cpu_count() or 1,
            "own_cpus": round(own_s / seconds, 2),
            "other_cpus": round(max(all_s - own_s, 0.0) / seconds, 2),
            "load_average": [self._average, _load_average()],
        }


def _cpu_seconds() -> tuple[float, float]:
    """CPU time of the machine and of this process since they began."""
    import psutil

    busy = sum(value for name, value in psutil.cpu_times()._asdict().items() if name not in _IDLE)
    own = psutil.Process().cpu_times()
    return busy, own.user + own.system


def _load_average() -> float:
    import psutil

    return round(psutil.getloadavg()[0], 2)


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


def _per_second(count: float, times_ms: Sequence[float]) -> float:
    """How many a second, where so many take the median of some times; 0 where that is none."""
    median_ms = statistics.median(times_ms)
    return round(1000 * count / median_ms, 3) if median_ms else 0.0


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)
