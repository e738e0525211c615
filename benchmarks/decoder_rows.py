"""Steps of several rows, prompts, and both behind a long context: a bundle's decoder by OpenVINO and by ONNX Runtime.

Both open the same INT4 bundle, such as that of `serving.py --prepare`, and take turns; embeddings are random. *16 rows,
256 tokens* is a step of 16 rows and a piece of a prompt in one, which ONNX Runtime's decoder takes one after the other.
Each step is of another number of tokens than the one before it; *again* is the same step once more, which is all that
a decoder does as long as no row joins or leaves.

With `--one-sequence` it is steps and short prompts of one sequence, by what engines have for that, and by OpenVINO's
decoder for several rows, too.

    PYTHONPATH=. python benchmarks/decoder_rows.py BUNDLE [--repeats 5] [--one-sequence]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
from measure import interleaved, machine, ratio, write_results

from r1v_export.contract import Decoder
from r1v_export.runner.kv_cache import open_cache
from r1v_export.runner.open_runner import open_runner
from r1v_export.targets.decoders import decoder_part
from r1v_export.targets.openvino.engine_file import read_engine_file

OURS, ALONE = "openvino", "onnxruntime"
OF_ROWS = "openvino, for several rows"
ROWS = (1, 2, 4, 8, 16, 32)
PROMPTS = (64, 150, 300, 512)
PIECES = (96, 256)
"""Tokens of a prompt in a step with others: what serving gives them without tiles of bfloat16, and with them."""
SHORT = (8, 16, 32, 64)
BEHIND = 200
"""Tokens that every row has when it is decoded."""
LONG = 3584
"""Tokens of the long context."""
STEPS = 20
"""Of one sequence, whose median is taken."""


class Steps:
    """One decoder's steps, by their names, in milliseconds."""

    def __init__(self, bundle: Path, target: str) -> None:
        engine = open_runner(bundle, decoder_target=target, vision_target="onnxruntime").engine
        random = np.random.default_rng(0)
        self.embeds_BSE = random.standard_normal((max(ROWS) + 1, 512, engine.sizes.hidden), dtype=np.float32) * 0.02
        self.rows = engine.decoder(max(ROWS) + 1, 576)
        self.long = engine.decoder(1, LONG + 512)
        for start in range(0, LONG, 512):
            self.prompt(self.long, 512, start)
        self.ragged = engine.cache_limits().prefill.together > 0

    def measure(self) -> dict[str, float]:
        steps: dict[str, Callable[[], None]] = {
            **{f"{rows} rows{again}": partial(self.decode, rows) for rows in ROWS for again in ("", " again")},
            **{f"{tokens} tokens": partial(self.prompt, self.rows, tokens) for tokens in PROMPTS},
            **{f"16 rows, {tokens} tokens": partial(self.mixed, tokens) for tokens in PIECES},
            f"1 token behind {LONG}": partial(self.prompt, self.long, 1, LONG),
            f"512 tokens behind {LONG}": partial(self.prompt, self.long, 512, LONG),
        }
        return {name: _ms(step) for name, step in steps.items()}

    def decode(self, rows: int) -> None:
        """One token of each of the first rows."""
        start_B = np.full(rows, BEHIND)
        self.rows.step(self.embeds_BSE[:rows, :1], start_B[:, None], start_B, start_B + 1, np.zeros((rows, 1), int))

    def prompt(self, decoder: Decoder, tokens: int, start: int = 0, row: int = 0) -> None:
        """Tokens of one row, with the logits of the last."""
        start_B = np.array([start])
        places, last = start + np.arange(tokens)[None], np.array([[tokens - 1]])
        decoder.step(self.embeds_BSE[:1, :tokens], places, start_B, start_B + tokens, last, row)

    def mixed(self, tokens: int) -> None:
        """16 rows, and a piece of a prompt in the row behind them."""
        if not self.ragged:
            self.decode(16)
            self.prompt(self.rows, tokens, row=16)
            return
        start_B = np.array([*[BEHIND] * 16, 0])
        last = np.array([*[[0]] * 16, [tokens - 1]])
        places = start_B[:, None] + np.arange(tokens)
        self.rows.step(self.embeds_BSE[:17, :tokens], places, start_B, start_B + tokens, last)


class OneSequence:
    """Steps of one sequence and its short prompts, likewise."""

    def __init__(self, bundle: Path, target: str, one_sequence: bool) -> None:
        engine = open_runner(bundle, decoder_target=target, vision_target="onnxruntime").engine
        self.embeds_1SE = np.random.default_rng(0).standard_normal((1, 512, engine.sizes.hidden), np.float32) * 0.02
        self.cache = open_cache(engine, 1, 576, one_sequence=one_sequence)

    def measure(self) -> dict[str, float]:
        self.append(BEHIND)
        for _ in range(STEPS):  # another engine's threads spin for a moment behind its last step
            self.append(1)
        found = {"1 token": statistics.median(_ms(partial(self.append, 1)) for _ in range(STEPS))}
        for tokens in SHORT:
            self.append(tokens)
            found[f"{tokens} tokens"] = statistics.median(_ms(partial(self.append, tokens)) for _ in range(3))
        return found

    def append(self, tokens: int) -> None:
        """Tokens, with the logits of the last."""
        if tokens > 1:
            self.cache.truncate(0, 0)
        self.cache.append(self.embeds_1SE[:, :tokens], np.array([tokens]))


def _ms(step: Callable[[], None]) -> float:
    clock = time.perf_counter()
    step()
    return (time.perf_counter() - clock) * 1000


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repeats", default=5, show_default=True)
@click.option("--one-sequence", is_flag=True, help="Steps and short prompts of one sequence.")
def main(bundle: Path, repeats: int, one_sequence: bool) -> None:
    """Measure both, and write the results."""
    found = {"machine": machine(("openvino", "onnxruntime", "numpy"))}
    systems: dict[str, Steps | OneSequence] = {}
    if one_sequence:
        systems = {name: OneSequence(bundle, name, one_sequence=True) for name in (OURS, ALONE)}
        systems[OF_ROWS] = OneSequence(bundle, OURS, one_sequence=False)
    else:
        systems = {name: Steps(bundle, name) for name in (OURS, ALONE)}
    results = interleaved({name: system.measure for name, system in systems.items()}, repeats)
    ratios = {quantity: ratio(results, ALONE, OURS, quantity) for quantity in results[OURS]}
    part = decoder_part(bundle, ALONE)
    assert part is not None
    exact = read_engine_file(part.folder).options.int4_inputs == "exact"
    name = "decoder-one-sequence" if one_sequence else "decoder-rows"
    name += "-exact" if exact else ""
    path = write_results(name, {**found, "repeats": repeats, "speed_over_onnxruntime": ratios, "ms": results})
    for quantity, value in ratios.items():
        click.echo(f"{quantity}: {value:.2f} times as fast")
    click.echo(path)


if __name__ == "__main__":
    main()
