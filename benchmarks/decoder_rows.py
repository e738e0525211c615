"""Steps of several rows, prompts, and both behind a long context: a bundle's decoder by OpenVINO and by ONNX Runtime.

Both open the same INT4 bundle, such as that of `serving.py --prepare`, and take turns; embeddings are random. *16 rows,
96 tokens* is a step of 16 rows and a piece of a prompt in one, which ONNX Runtime's decoder takes one after the other.
Each step is of another number of tokens than the one before it; *again* is the same step once more, which is all that
a decoder does as long as no row joins or leaves. *Alone* is what an engine has for one sequence.

    PYTHONPATH=. python benchmarks/decoder_rows.py BUNDLE [--repeats 5]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
from measure import interleaved, machine, ratio, write_results

from r1v_export.contract import Decoder
from r1v_export.runner.batching.engine_batch import PROMPT_TOKENS_WITH_OTHERS as PIECE
from r1v_export.runner.kv_cache import open_cache
from r1v_export.runner.open_runner import open_runner
from r1v_export.targets.decoders import decoder_part
from r1v_export.targets.openvino.engine_file import read_engine_file

OURS, ALONE = "openvino", "onnxruntime"
ROWS = (1, 2, 4, 8, 16, 32)
PROMPTS = (64, 150, 300, 512)
PROMPTS_ALONE = (8, 16, 32, 64)
BEHIND = 200
"""Tokens that every row has when it is decoded."""
LONG = 3584
"""Tokens of the long context."""


class Steps:
    """One decoder's steps, by their names, in milliseconds."""

    def __init__(self, bundle: Path, target: str) -> None:
        engine, other = (
            open_runner(bundle, decoder_target=target, vision_target="onnxruntime").engine for _ in range(2)
        )
        random = np.random.default_rng(0)
        self.embeds_BSE = random.standard_normal((max(ROWS) + 1, 512, engine.sizes.hidden), dtype=np.float32) * 0.02
        self.rows = engine.decoder(max(ROWS) + 1, 576)
        self.long = engine.decoder(1, LONG + 512)
        for start in range(0, LONG, 512):
            self.prompt(self.long, 512, start)
        self.alone = open_cache(other, 1, 576, one_sequence=True).decoder
        self.prompt(self.alone, BEHIND)
        self.ragged = engine.cache_limits().ragged

    def measure(self) -> dict[str, float]:
        steps: dict[str, Callable[[], None]] = {
            **{f"{rows} rows{again}": partial(self.decode, rows) for rows in ROWS for again in ("", " again")},
            **{f"{tokens} tokens": partial(self.prompt, self.rows, tokens) for tokens in PROMPTS},
            **{f"1 row alone{again}": partial(self.prompt, self.alone, 1, BEHIND) for again in ("", " again")},
            **{f"{tokens} tokens alone": partial(self.prompt, self.alone, tokens) for tokens in PROMPTS_ALONE},
            f"16 rows, {PIECE} tokens": self.mixed,
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

    def mixed(self) -> None:
        """16 rows, and a piece of a prompt in the row behind them."""
        if not self.ragged:
            self.decode(16)
            self.prompt(self.rows, PIECE, row=16)
            return
        start_B = np.array([*[BEHIND] * 16, 0])
        last = np.array([*[[0]] * 16, [PIECE - 1]])
        places = start_B[:, None] + np.arange(PIECE)
        self.rows.step(self.embeds_BSE[:17, :PIECE], places, start_B, start_B + PIECE, last)


def _ms(step: Callable[[], None]) -> float:
    clock = time.perf_counter()
    step()
    return (time.perf_counter() - clock) * 1000


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repeats", default=5, show_default=True)
def main(bundle: Path, repeats: int) -> None:
    """Measure both, and write the results."""
    found = {"machine": machine(("openvino", "onnxruntime", "numpy"))}
    results = interleaved({name: Steps(bundle, name).measure for name in (OURS, ALONE)}, repeats)
    ratios = {quantity: ratio(results, ALONE, OURS, quantity) for quantity in results[OURS]}
    part = decoder_part(bundle, ALONE)
    assert part is not None
    exact = read_engine_file(part.folder).options.int4_inputs == "exact"
    name = "decoder-rows-exact" if exact else "decoder-rows"
    path = write_results(name, {**found, "repeats": repeats, "speed_over_onnxruntime": ratios, "ms": results})
    for quantity, value in ratios.items():
        click.echo(f"{quantity}: {value:.2f} times as fast")
    click.echo(path)


if __name__ == "__main__":
    main()
