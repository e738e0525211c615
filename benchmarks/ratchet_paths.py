"""The paths that `ratchet.py` measures, each run once between two marks; those of a group in one process, in order.

A mark is `os.getppid()`: callgrind writes what it has counted before each call of that function, which nothing else
here calls. What comes between one path and the next (imports, opening, a warm-up) is in a count of its own, and is
dropped: of a process, the second count is that of its first path, the fourth that of its second, and so on.

    python benchmarks/ratchet_paths.py GROUP WORK
    python benchmarks/ratchet_paths.py PAIR WORK TURNS

What takes several threads has no repeatable count: it takes turns with a yardstick, work that no change here touches,
and the seconds of both are printed. WORK holds `fp32` and `int4`, the bundles of `ratchet.build_bundles`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTION = "How many objects do you see? Say which color each of them has, and where it is."
IMAGE = Path(__file__).parents[1] / "examples" / "images" / "06-count.png"
WARM_UPS = 3
DECODE_STEPS, SAMPLED_TOKENS, STREAMED_TOKENS = 8, 4, 200
VOCABULARY = 151_674
"""Of Skywork-R1V: sampling costs what the vocabulary is long."""
ROWS, COLUMNS = 512, 1024
"""Of the weight that is rounded."""


def open_bundle(work: Path) -> Callable[[], object]:
    """A bundle made ready, sessions of ONNX Runtime included."""
    from r1v_export.runner.open_runner import open_runner

    return lambda: open_runner(work / "fp32")


def preprocess(work: Path) -> Callable[[], object]:
    """An image from its file to tiles."""
    from r1v_export.processing.load_image import load_image
    from r1v_export.processing.pipeline_document import open_files
    from r1v_export.processing.preprocess import pixel_values

    _, pipeline = open_files(work / "fp32")
    policy = pipeline.image_policy
    return lambda: pixel_values([load_image(IMAGE, policy)], pipeline.tiling.spec, policy)


def prompt(work: Path) -> Callable[[], object]:
    """A question about an image of four tiles, to tokens."""
    from r1v_export.processing.pipeline_document import open_files
    from r1v_export.processing.prompt import Turn
    from r1v_export.runner.prompt_encoder import PromptEncoder

    tokenizer, pipeline = open_files(work / "fp32")
    encoder = PromptEncoder(tokenizer, pipeline, pipeline.positions.max_positions)
    return lambda: encoder.encode([Turn("user", QUESTION, images=1)], [4], think=True)


def decode(work: Path, precision: str) -> Callable[[], object]:
    """`DECODE_STEPS` tokens of an answer as the runner makes them: embedding, decoder, token, text."""
    import threading

    from r1v_export.generation import Sampling
    from r1v_export.runner.open_runner import open_runner
    from r1v_export.runner.prompt_encoder import Request

    runner = open_runner(work / precision)
    sampling = Sampling(max_new_tokens=200, ignore_eos=True)
    batch = runner.open_batch(max_rows=1)
    encoded = runner.prepare(Request.ask(QUESTION), runner.image_encoder(), threading.Event())
    batch.admit(encoded, sampling, runner.stream(0, encoded, sampling))
    return lambda: [batch.step() for _ in range(DECODE_STEPS)]


def sample(work: Path) -> Callable[[], object]:
    """`SAMPLED_TOKENS` tokens from a long vocabulary, with every filter."""
    import numpy as np

    from r1v_export.generation import Sampling
    from r1v_export.runner.sampling import Sampler

    logits_V = np.random.default_rng(0).normal(scale=4, size=VOCABULARY).astype(np.float32)
    settings = Sampling(temperature=0.6, top_p=0.95, top_k=50, min_p=0.01, repetition_penalty=1.05, seed=1)
    sampler = Sampler(settings, range(500), VOCABULARY)
    return lambda: [sampler.next(logits_V) for _ in range(SAMPLED_TOKENS)]


def stream(work: Path) -> Callable[[], object]:
    """`STREAMED_TOKENS` tokens to text, split into reasoning and answer, with a stop string."""
    from r1v_export.generation import Sampling
    from r1v_export.processing.pipeline_document import open_files
    from r1v_export.runner.answer import AnswerText

    tokenizer, pipeline = open_files(work / "fp32")
    ids = tokenizer.encode_text("I see a red square top left, and a blue circle. " * 20)[:STREAMED_TOKENS]
    assert len(ids) == STREAMED_TOKENS

    def answer() -> None:
        text = AnswerText(tokenizer.token_bytes, Sampling(stop=("###",)), True, pipeline.reasoning.pair)
        for token_id in ids:
            text.push(token_id)

    return answer


def rounding(work: Path, kind: Any, group_size: int | None) -> Callable[[], object]:
    """A weight [`ROWS`, `COLUMNS`] rounded to nearest."""
    import torch

    from r1v_export.quantization.algorithms.rtn import round_to_nearest

    weight_OI = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    return lambda: round_to_nearest(weight_OI, kind, group_size)


def show_help(work: Path) -> Callable[[], object]:
    """Nothing between the marks: what counts is everything before them, see `ratchet.COUNTED_BEFORE`."""
    import contextlib
    import io

    from r1v_export.cli.main import main

    sys.argv = ["r1v-export", "--help"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
    print(len(sys.modules))
    return lambda: None


GROUPS: dict[str, dict[str, Callable[[Path], Callable[[], object]]]] = {
    "help": {"help": show_help},
    "runtime": {
        "open": open_bundle,
        "preprocess": preprocess,
        "prompt": prompt,
        "decode-fp32": lambda work: decode(work, "fp32"),
        "decode-int4": lambda work: decode(work, "int4"),
        "sample": sample,
        "stream": stream,
    },
    "compiler": {
        "round-fp8": lambda work: rounding(work, "fp8", None),
        "round-int4": lambda work: rounding(work, "int4", 128),
    },
}
"""Paths by the processes that they share: `--help` has imported nothing else, and what answers no torch."""


def answers(work: Path, precision: str) -> Callable[[], object]:
    """Four answers of 24 tokens at once, in as many threads as there are."""
    from r1v_export.generation import Sampling
    from r1v_export.runner.open_runner import open_runner
    from r1v_export.runner.prompt_encoder import Request

    runner = open_runner(work / precision)
    requests = [Request.ask(f"{number}: {QUESTION}") for number in range(4)]
    sampling = Sampling(max_new_tokens=24, ignore_eos=True)
    return lambda: runner.answers(requests, sampling)


def products(work: Path) -> Callable[[], object]:
    """A yardstick: numpy's float32 products."""
    import numpy as np

    matrix = np.random.default_rng(0).normal(size=(768, 768)).astype(np.float32)
    return lambda: [matrix @ matrix for _ in range(12)]


def process(*arguments: str) -> Callable[[], object]:
    """A process of its own, from its start to its end."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


PAIRS: dict[str, tuple[Callable[[Path], Callable[[], object]], Callable[[Path], Callable[[], object]]]] = {
    "answers-fp32": (lambda work: answers(work, "fp32"), products),
    "answers-int4": (lambda work: answers(work, "int4"), products),
    "help-process": (
        lambda work: process("-m", "r1v_export.cli.main", "--help"),
        lambda work: process("-c", "import json, logging, subprocess, typing"),
    ),
}
"""What is measured, and its yardstick."""


def count(prepare: Callable[[Path], Callable[[], object]], work: Path) -> None:
    """Run a path between two marks."""
    measured = prepare(work)
    for _ in range(WARM_UPS):
        measured()
    gc.collect()
    gc.freeze()  # A collection inside the marks would walk through everything that was imported.
    os.getppid()
    measured()
    os.getppid()


def take_turns(name: str, work: Path, turns: int) -> None:
    """Print the seconds of a path and of its yardstick, turn by turn, as JSON."""
    contenders = [make(work) for make in PAIRS[name]]
    seconds = []
    for _ in range(turns + 1):
        moments = [time.perf_counter()]
        for contender in contenders:
            contender()
            moments.append(time.perf_counter())
        seconds.append((moments[1] - moments[0], moments[2] - moments[1]))
    print(json.dumps(seconds[1:]))


if __name__ == "__main__":
    if sys.argv[1] in PAIRS:
        take_turns(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    else:
        for path in GROUPS[sys.argv[1]].values():
            count(path, Path(sys.argv[2]))
