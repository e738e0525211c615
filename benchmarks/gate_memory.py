"""What a parity gate holds at its peak, part by part, against what `pipeline.gate_memory` says beforehand.

Each gate runs in a process of its own, whose anonymous memory this one reads every two milliseconds. Pages of files
that the kernel gives back are not part of it. What was measured is added to benchmarks/results/<date>-gate-memory.json,
where tests/pipeline/test_gate_memory.py compares the plan with it.

    r1v-export synth MODEL --preset r1v1-38b --sparse --vision-layers 1 --language-layers 1 --set ...
    r1v-export build MODEL --precision int4 --recipe int4-rtn --target hf-unified -o BUNDLE --no-parity
    python benchmarks/gate_memory.py BUNDLE MODEL [--target NAME] [--gate whole|streamed]...
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import psutil
from measure import RESULTS, commit, machine, newest_results, write_results

from r1v_export.bundle import Bundle
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import ParityConfig
from r1v_export.memory import Opened, opened, release_free_memory
from r1v_export.model_spec import ModelSpec
from r1v_export.parity import streamed, texts
from r1v_export.parity.options import CheckOptions
from r1v_export.pipeline.calibration import open_artifact
from r1v_export.pipeline.parity_gate import GateRun, GeneratedQuestions, check_options, gate_names
from r1v_export.progress import ignore_progress, size
from r1v_export.quantization.artifact.artifact import Artifact

WHAT = "gate-memory"


def run_gate(gate: str, folder: Path, target: str, model: Path, parity: ParityConfig, blocks: Any, kept: Any) -> None:
    """Run one gate.

    Args:
        blocks: set to how many blocks were opened, also those through which texts are taken.
        kept: set to the process's memory where the first is opened: what starting took and gave back is no part of it.
    """
    bundle, checkpoint = Bundle.open(folder), Checkpoint.open(model)
    artifact = open_artifact(bundle.folder, checkpoint)
    run = GateRun(bundle.folder, target, checkpoint, artifact, "cpu")
    gates = options_of(bundle, target, artifact, gate, parity)

    def counted(open_block: Callable[[], Opened]) -> Opened:
        release_free_memory()
        if not blocks.value:
            kept.value = anonymous_bytes(os.getpid())
        blocks.value += 1
        return opened(open_block)

    if gate == "whole":
        blocks.value += 1
        for wanted in gates:
            run.whole(GeneratedQuestions(checkpoint, parity.questions), wanted, ignore_progress)
        return
    with (
        tempfile.TemporaryDirectory() as work,
        mock.patch.object(streamed, "opened", counted),
        mock.patch.object(texts, "opened", counted),
    ):
        questions = GeneratedQuestions(checkpoint, parity.streamed_questions)
        run.streamed(questions, gates, Path(work, "activations"), ignore_progress)


def options_of(
    bundle: Bundle, target: str, artifact: Artifact | None, gate: str, parity: ParityConfig
) -> list[CheckOptions]:
    """Of each comparison."""
    tokens = parity.max_new_tokens if gate == "whole" else parity.streamed_reply_tokens
    options = check_options(bundle.config, target, bundle.spec, artifact, max_new_tokens=tokens)
    names = gate_names(artifact.recipe if artifact else None, options.own_weights)
    return [replace(options, gate=name) for name in names]


def parts_in_order(spec: ModelSpec, comparisons: list[str], encoders: list[str]) -> list[str]:
    """The blocks that a streamed gate opens one after the other, as `gate_memory` names them, without texts."""
    tower = ["vision_embeddings", *["vision_block"] * spec.vision.num_layers, "vision_features"]
    parts = [f"{block}/{engine}" for block in tower for engine in (*encoders, "engine")]
    parts += [f"projector/{engine}" for engine in ("engine", *encoders)]
    decoder = [*["decoder_layer"] * spec.language.num_layers, "head"]
    parts += [f"{block}/{engine}" for block in decoder for engine in (*comparisons, "engine")]
    return parts


def peaks(gate: str, folder: Path, target: str, model: Path, parity: ParityConfig) -> dict[int, int]:
    """Most anonymous memory in bytes, by the number of blocks that were opened; with 0, of the process itself."""
    context = multiprocessing.get_context("spawn")
    blocks, kept = context.Value("i", 0, lock=False), context.Value("q", 0, lock=False)
    process = context.Process(target=run_gate, args=(gate, folder, target, model, parity, blocks, kept))
    process.start()
    found: dict[int, int] = {}
    while process.is_alive():
        at, now = blocks.value, anonymous_bytes(process.pid or 0)
        found[at] = max(found.get(at, 0), now)
        time.sleep(0.002)
    if process.exitcode:
        raise SystemExit(f"the gate failed: {process.exitcode}")
    return found | {0: kept.value or found[0]}


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


def measured(gate: str, folder: Path, target: str, model: Path, parity: ParityConfig) -> dict[str, Any]:
    """A row of the results."""
    bundle, checkpoint = Bundle.open(folder), Checkpoint.open(model)
    artifact = open_artifact(folder, checkpoint)
    options = options_of(bundle, target, artifact, gate, parity)
    started, load = time.monotonic(), psutil.getloadavg()[0]
    found = peaks(gate, folder, target, model, parity)
    comparisons = [str(each.gate) for each in options]
    decoder_only = all(linear.startswith("language_model.") for linear in (artifact.schemes if artifact else ()))
    parts: dict[str, int] = {}
    if gate == "streamed":
        encoders = comparisons[:1] if decoder_only else comparisons
        names = ["process", *parts_in_order(bundle.spec, comparisons, encoders)]
        for at, peak in found.items():
            name = names[at] if at < len(names) else "texts"
            parts[name] = max(parts.get(name, 0), peak)
    return {
        "target": target,
        "gate": gate,
        "precision": bundle.config.precision,
        "config": bundle.config.model_dump(mode="json", include={"precision", "recipe", "targets", "device"}),
        "recipe": artifact.recipe.model_dump(mode="json") if artifact else None,
        "imported": checkpoint.quantized is not None,
        "questions": parity.streamed_questions if gate == "streamed" else parity.questions,
        "reply_tokens": options[0].max_new_tokens,
        "commit": commit(),
        "load_average": [load, psutil.getloadavg()[0]],
        "seconds": round(time.monotonic() - started, 1),
        "peak": max(found.values()),
        "parts": parts,
        "spec": bundle.spec.model_dump(mode="json"),
    }


@click.command()
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "targets", multiple=True)
@click.option("--gate", "gates", multiple=True, type=click.Choice(["whole", "streamed"]), default=["streamed"])
@click.option("--questions", default=1)
@click.option("--reply-tokens", default=4)
@click.option("--results", "place", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the record.")
def main(
    folder: Path,
    model: Path,
    targets: tuple[str, ...],
    gates: tuple[str, ...],
    questions: int,
    reply_tokens: int,
    place: Path,
) -> None:
    """Measure gates, one after the other, and record them in place of earlier ones of the same name."""
    asked = {"questions": questions, "max_new_tokens": reply_tokens}
    asked |= {"streamed_questions": questions, "streamed_reply_tokens": reply_tokens}
    for target in targets or (Bundle.open(folder).target(None),):
        for gate in gates:
            row = measured(gate, folder, target, model, ParityConfig.model_validate(asked))
            name = f"{model.name}, {row['recipe']['name'] if row['recipe'] else row['precision']}, {target}, {gate}"
            try:
                results = newest_results(WHAT, place)
            except IndexError:
                results = {"machine": machine(("r1v-export", "torch", "onnxruntime")), "rows": {}}
            results["rows"][name] = row
            click.echo(f"{name}: {size(row['peak'])} in {row['seconds']} s; {write_results(WHAT, results, place)}")


if __name__ == "__main__":
    main()
