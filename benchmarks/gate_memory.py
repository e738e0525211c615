"""What a parity gate holds at its peak, against what `pipeline.gate_memory` says beforehand.

Each gate runs in a process of its own; its anonymous memory is read every few milliseconds. Pages of files that the
kernel gives back are not part of it.

    python benchmarks/gate_memory.py BUNDLE MODEL [--target NAME] [--gate whole|streamed]...
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import click

from r1v_export.bundle import Bundle
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import ParityConfig
from r1v_export.pipeline.calibration import open_artifact
from r1v_export.pipeline.gate_memory import PROCESS_BYTES, gate_memory
from r1v_export.pipeline.parity_gate import GateRun, GeneratedQuestions, check_options, gate_names
from r1v_export.progress import ignore_progress, size
from r1v_export.targets import registry

PARITY = ParityConfig(questions=2, max_new_tokens=16)


def run_gate(gate: str, bundle: Bundle, target: str, model: Path, connection: Connection) -> None:
    """Run one gate and send the peak of this process's anonymous memory, and what it was before, in bytes."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    checkpoint = Checkpoint.open(model)
    artifact = open_artifact(bundle.folder, checkpoint)
    run = GateRun(bundle.folder, target, checkpoint, artifact, "cpu")
    options = check_options(bundle.config, target, bundle.spec, artifact, max_new_tokens=PARITY.max_new_tokens)
    questions = GeneratedQuestions(checkpoint, PARITY.questions)
    before = anonymous_bytes()
    gates = [replace(options, gate=name) for name in gate_names(checkpoint, artifact, options)]
    if gate == "whole":
        for wanted in gates:
            run.whole(questions, wanted, ignore_progress)
    else:
        with tempfile.TemporaryDirectory() as work:
            run.streamed(questions, gates, Path(work, "activations"), ignore_progress)
    done.set()
    thread.join()
    connection.send((peak[0], before))


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target")
@click.option("--gate", "gates", multiple=True, type=click.Choice(["whole", "streamed"]), default=["whole", "streamed"])
def main(bundle: Path, model: Path, target: str | None, gates: tuple[str, ...]) -> None:
    """Print what each gate takes."""
    opened = Bundle.open(bundle)
    target = opened.target(target)
    artifact = open_artifact(bundle, Checkpoint.open(model))
    packed = registry.get_target(target).packed_in_memory
    expected = gate_memory(opened.spec, artifact.schemes if artifact else {}, PARITY, packed)
    context = multiprocessing.get_context("spawn")
    for gate in gates:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=run_gate, args=(gate, opened, target, model, sending))
        process.start()
        sending.close()  # so that a process that ends early is not waited for
        (measured, before), planned = receiving.recv(), getattr(expected, gate)
        process.join()
        share, model_share = planned / measured - 1, (planned - PROCESS_BYTES) / (measured - before) - 1
        click.echo(
            f"{target} {gate}: planned {size(planned)}, measured {size(measured)}, {100 * share:+.0f} %; "
            f"without the process itself {100 * model_share:+.0f} %"
        )


if __name__ == "__main__":
    main()
