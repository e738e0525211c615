"""Whole answers about an image of 1, 4 and 13 tiles: from the question to the first and to the last token.

A random model of InternVL3-1B's shape (InternViT-300M with all 24 blocks, Qwen2.5-0.5B's decoder), a PNG of so many
tiles and 32 new tokens, whatever the model would like. Ours (int4 with images by OpenVINO where the processor has
bfloat16, else by ONNX Runtime in 8 bits, which is the default; with exact images; all on OpenVINO; int8; float32),
OpenVINO GenAI's VLM pipeline (`whole_answers_genai.py` makes its models of our GGUF file and ONNX graphs), llama.cpp's
server (Q4_0, embeddings and head in Q8_0, and an mmproj file in F16), vLLM (bfloat16; it compiles while it loads, which
is not in the times of answers), transformers (bfloat16, float32). Each system is a process of its own
(`whole_answers_engine.py`), one after the other: in each turn it loads its model, is asked twice with one tile, answers
an image of each number of tiles that no system has seen, and ends. With all in memory at the same time, the order in
which they were loaded moved their times by up to a half: in a virtual machine it matters which memory is free when a
process starts. Ours round weights for OpenVINO once and keep them for later processes (docs/openvino.md): answer a
question with the bundles `int4` and `fp32` and `run --vision-target openvino` before the first measurement.

    python benchmarks/whole_answers.py --prepare     # environments, model and bundles: 13 GB, some minutes
    python benchmarks/whole_answers.py               # two idle cores; a turn of 1 and 4 tiles takes 7 minutes

A turn goes over all systems and all numbers of tiles that still have turns, and is begun only if it is likely to end in
time. Results: benchmarks/results/<date>-whole-answers.json, written after every system; the table goes to stdout.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from engine_process import EngineProcess
from environments import environment_of
from llama_cpp_oracle import VERSION as LLAMA_VERSION
from llama_cpp_oracle import make_environment
from measure import RESULTS, machine, write_results
from serving_model import speak_letters
from vllm_oracle import PACKAGES as VLLM_PACKAGES
from vllm_oracle import make_environment as make_vllm_environment

from r1v_export.bundle import Bundle
from r1v_export.cpus import thread_count
from r1v_export.processing.pipeline_document import document_template
from r1v_export.processing.synthetic_image import synthetic_image
from r1v_export.quantization.recipe import load
from r1v_export.runner.bench import synthetic_size
from r1v_export.targets.images import encoding_target

PROJECT = Path(__file__).parents[1]
QUESTION = "What do you see?"
WARM_UP_ANSWERS = 2
GENAI_VERSION = "2026.4.1.0"
OURS = (
    *("ours int4", "ours int4, openvino", "ours int4, decoded by onnxruntime", "ours int4, images by onnxruntime"),
    *("ours int8", "ours float32"),
)
GGUF_TYPES = "targets: {gguf: {model: Q8_0, mmproj: F16}}\n"
"""Of a build file: Q8_0 for what the recipe leaves of the language model, its head and embeddings."""
FREE_BYTES = 7 << 30
"""Memory that must be there when a system is started."""
QUANTITIES = ("first_s", "last_s")


@dataclass
class System(EngineProcess):
    """One that answers.

    Args:
        kind, model, option: arguments of `whole_answers_engine.py`.
        python: that runs it.
    """

    kind: str
    model: Path
    option: str = ""
    python: Path = Path(sys.executable)
    open_s: float = field(default=0.0, init=False)

    @contextmanager
    def running(self, threads: int, work: Path, job: Mapping[str, Any]) -> Iterator[None]:
        """Load the model and let it answer a job that is not measured; it is there in the block."""
        available = psutil.virtual_memory().available
        if available < FREE_BYTES:
            raise SystemExit(f"{self.name}: {available / 1e9:.1f} GB of memory are left: end what else runs")
        try:
            self.start(threads, work / f"{self.name}.log")
            for _ in range(WARM_UP_ANSWERS):  # ours moves weights to huge pages during the first
                self.ask(job)
            yield
        finally:
            self.stop()

    def start(self, threads: int, log: Path) -> None:
        """Load the model."""
        path = str(PROJECT) if self.python == Path(sys.executable) else ""
        script = PROJECT / "benchmarks" / "whole_answers_engine.py"
        command = [self.python, script, self.kind, self.model, str(threads), self.option]
        variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.open_s = self.launch(command, variables, log)["open_s"]

    def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a job, and the load of the minute before it."""
        load = psutil.getloadavg()[0]
        found = super().ask(job)
        if found["tokens"] != job["new_tokens"]:
            raise SystemExit(f"{self.name}: {found['tokens']} tokens instead of {job['new_tokens']}")
        return found | {"load_average": round(load, 2)}


def prepare(work: Path) -> list[System]:
    """Make what is not there, and name the systems, ours first."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, recipe, types, vino = (work / name for name in ("checkpoint", "int4-32.yaml", "gguf.yaml", "vino.yaml"))
    if not (work / "spoken").exists():
        r1v_export("synth", checkpoint, "--preset", "internvl3-1b", "--layout", "internvl")
        # Every likeliest token is a character: llama.cpp's server keeps a token back that is not.
        speak_letters(checkpoint, "lm_head.weight")
        (work / "spoken").touch()
    text = load("int4-rtn").to_yaml().replace("group_size: 128", "group_size: 32")  # llama.cpp's groups
    recipe.write_text(text, encoding="utf-8")
    types.write_text(GGUF_TYPES, encoding="utf-8")
    # Gates of random weights say nothing, so none vouches here: this is what `auto` takes where one does.
    other = "onnxruntime" if encoding_target("openvino").why_not_images("bfloat16") else "openvino"
    in_8_bits = "onnxruntime-int8" if other == "onnxruntime" else other
    vino.write_text(f"targets: {{openvino: {{matmul: {'bfloat16' if other == 'openvino' else 'float32'}}}}}\n")
    int4 = ("--precision", "int4", "--recipe")
    builds: dict[str, tuple[str | Path, ...]] = {
        "int4": (*int4, "int4-rtn", "--target", "onnxruntime"),
        "int4-openvino": (*int4, "int4-rtn", "--target", "openvino", "--config", vino),
        "int8": ("--precision", "int8", "--samples", "4", "--target", "onnxruntime"),
        "fp32": ("--precision", "fp32", "--target", "onnxruntime"),
        "gguf": (*int4, recipe, "--target", "gguf", "--config", types),
    }
    for name, options in builds.items():
        if not (work / name / "manifest.json").exists():
            r1v_export("build", checkpoint, *options, "--no-parity", "-o", work / name)
    llama = make_environment(work / "llama")
    genai = environment_of(work / "genai", ("install", "-q", f"openvino-genai=={GENAI_VERSION}", "pillow"))
    vllm = make_vllm_environment(work / "vllm")
    gguf, models = work / "gguf" / "engines" / "gguf", work / "genai-model"
    if not (models / "config.json").exists():
        script = PROJECT / "benchmarks" / "whole_answers_genai.py"
        subprocess.run([genai, script, gguf / "model.gguf", work / "fp32" / "graphs", models], check=True)
    systems = [
        System(OURS[0], "ours", work / "int4", f"onnxruntime {in_8_bits} {other}"),
        System(OURS[1], "ours", work / "int4-openvino", "openvino openvino openvino"),
        System(OURS[2], "ours", work / "int4", f"onnxruntime {in_8_bits} onnxruntime"),
        System(OURS[3], "ours", work / "int4", f"onnxruntime onnxruntime {other}"),
        System("OpenVINO GenAI Q4_0", "genai", models, python=genai),
        System("llama.cpp Q4_0", "llama", gguf, python=llama),
        System("vLLM bfloat16", "vllm", checkpoint, "bfloat16", python=vllm),
        System("transformers bfloat16", "transformers", checkpoint, "bfloat16"),
        System(OURS[4], "ours", work / "int8", f"onnxruntime {other} onnxruntime"),
        System(OURS[5], "ours", work / "fp32", f"onnxruntime {other} onnxruntime"),
        System("transformers float32", "transformers", checkpoint, "float32"),
    ]
    as_the_first = OURS[2] if other == "onnxruntime" else None
    return [each for each in systems if each.name != as_the_first]


def r1v_export(*words: str | Path) -> None:
    command = [sys.executable, "-m", "r1v_export.cli.main", *words]
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | {"PYTHONPATH": str(PROJECT)})


def job_of(work: Path, tiles: int, turn: int, new_tokens: int) -> dict[str, Any]:
    """What is asked: about an image that every system cuts into the same tiles, and none has seen before."""
    pipeline = Bundle.open(work / "int4").pipeline
    template, tiling = document_template(pipeline), pipeline.tiling.spec
    system = template.system[0] + template.default_system + template.system[1] if template.default_system else ""
    image = work / f"{tiles}-{turn}.png"
    synthetic_image(np.random.default_rng((tiles, turn)), *synthetic_size(tiles, tiling)).save(image)
    return {
        "image": str(image),
        "question": QUESTION,
        "before": template.begin + system + template.user[0],
        "after": "\n" + QUESTION + template.user[1] + template.assistant[0] + template.thinking,
        "new_tokens": new_tokens,
    }


def summary(readings: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians of each system at one number of tiles, and each peer's and each of ours' times over each of ours."""
    systems = {
        name: {
            **{quantity: statistics.median(each[quantity] for each in rows) for quantity in QUANTITIES},
            "peak_bytes": max(each["peak_bytes"] for each in rows),
            "prompt_tokens": rows[0]["prompt_tokens"],
            "turns": len(rows),
            "readings": rows,
        }
        for name, rows in readings.items()
    }
    ratios = {
        f"{name} / {ours}": {
            quantity: round(systems[name][quantity] / systems[ours][quantity], 3) for quantity in QUANTITIES
        }
        for ours in OURS
        for name in systems
        if ours in systems and name != ours
    }
    return {"ratios": ratios, "systems": systems}


def table(tiles: Mapping[int, Mapping[str, Any]], baseline: str) -> str:
    """Markdown: times to the first and last token over the baseline's, which above 1 is the faster; memory at its peak.

    Args:
        tiles: a summary for each number of tiles.
    """
    head = [f"{count} tile{'s' * (count > 1)}: first, last token" for count in tiles]
    lines = [["", *head, "peak memory, GB: " + ", ".join(map(str, tiles))]]
    lines.append(["---"] * len(lines[0]))
    for name in next(iter(tiles.values()))["systems"]:
        cells = []
        for each in tiles.values():
            own, base = each["systems"][name], each["systems"][baseline]
            cells.append(", ".join(f"{own[quantity] / base[quantity]:.2f}" for quantity in QUANTITIES))
        peaks = ", ".join(f"{each['systems'][name]['peak_bytes'] / 1e9:.1f}" for each in tiles.values())
        lines.append([name, *cells, peaks])
    base = [each["systems"][baseline] for each in tiles.values()]
    seconds = [", ".join(f"{each[quantity]:.2f} s" for quantity in QUANTITIES) for each in base]
    lines.append([f"{baseline}, seconds", *seconds, ""])
    turns = [str(each["turns"]) for each in base]
    lines.append(["turns", *turns, ""])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def other_prompts(tiles: Mapping[int, Mapping[str, Any]], baseline: str) -> list[str]:
    """Where a system's prompt has another number of tokens than the baseline's: it then did other work."""
    return [
        f"{count} tiles: {name} has {each['prompt_tokens']} prompt tokens, {baseline} {base['prompt_tokens']}"
        for count, found in tiles.items()
        for name, each in found["systems"].items()
        if each["prompt_tokens"] != (base := found["systems"][baseline])["prompt_tokens"]
    ]


@dataclass
class Clock:
    """When a run must have ended.

    Args:
        limit_s: seconds from now on.
    """

    limit_s: float
    began: float = field(default_factory=time.monotonic, init=False)
    took_s: dict[int, float] = field(default_factory=dict, init=False)
    """By tiles: how long all systems took for them in the latest turn; under 0, to load and to warm up."""

    def has_time(self, tiles: Sequence[int]) -> bool:
        """Whether a turn of these numbers of tiles is likely to end in time: the first one always is begun."""
        if not all(each in self.took_s for each in tiles):
            return True
        return time.monotonic() - self.began + sum(self.took_s[each] for each in (0, *tiles)) < self.limit_s


def measure(
    systems: Sequence[System], turns: Mapping[int, int], new_tokens: int, clock: Clock, threads: int, work: Path
) -> Iterator[dict[int, dict[str, Any]]]:
    """Turns over all systems; yields what there is after each system.

    Args:
        turns: at most so many, by tiles.
    """
    readings: dict[int, dict[str, list[dict[str, Any]]]] = {tiles: {} for tiles in turns}
    for turn in range(1, max(turns.values()) + 1):
        wanted = [tiles for tiles, most in turns.items() if turn <= most]
        while wanted and not clock.has_time(wanted):
            wanted.remove(max(wanted))
        if not wanted:
            return
        jobs = {tiles: job_of(work, tiles, turn, new_tokens) for tiles in wanted}
        clock.took_s.update(dict.fromkeys((0, *wanted), 0.0))
        for system in systems:
            moments = [time.monotonic()]
            with system.running(threads, work, job_of(work, 1, 0, new_tokens)):
                moments.append(time.monotonic())
                for tiles, job in jobs.items():
                    found = system.ask(job)
                    moments.append(time.monotonic())
                    readings[tiles].setdefault(system.name, []).append(found)
                    shown = ", ".join(f"{quantity} {found[quantity]:.2f}" for quantity in QUANTITIES)
                    print(f"  {tiles:2} tiles {system.name:26} {shown}", file=sys.stderr, flush=True)
            for what, (before, after) in zip((0, *wanted), pairwise(moments), strict=True):
                clock.took_s[what] += after - before
            yield {tiles: summary(rows) for tiles, rows in readings.items() if rows}


@click.command()
@click.option("--prepare", "only_prepare", is_flag=True, help="Make what is measured, and end.")
@click.option("--tiles", "counts", type=int, multiple=True, default=(1, 4, 13), show_default=True)
@click.option(
    "--turns", type=int, multiple=True, default=(5, 3, 2), show_default=True, help="At most; one for each --tiles."
)
@click.option("--new-tokens", type=click.IntRange(2), default=32, show_default=True)
@click.option("--minutes", default=9.5, show_default=True, help="Begin no further turn that would end later.")
@click.option("--threads", default=thread_count().count, show_default=True)
@click.option("--only", multiple=True, help="The systems whose name contains this.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-whole-answers"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    only_prepare: bool,
    counts: tuple[int, ...],
    turns: tuple[int, ...],
    new_tokens: int,
    minutes: float,
    threads: int,
    only: tuple[str, ...],
    work: Path,
    results: Path,
) -> None:
    if len(turns) < len(counts):
        raise click.UsageError("give --turns as often as --tiles")
    systems = [each for each in prepare(work) if not only or any(part in each.name for part in only)]
    if only_prepare:
        return
    clock = Clock(60 * minutes)
    report: dict[str, Any] = {"machine": machine(("onnxruntime", "openvino", "torch", "transformers", "numpy"))}
    report["machine"]["packages"] |= {
        "xllamacpp": LLAMA_VERSION,
        "openvino-genai": GENAI_VERSION,
        "vllm": VLLM_PACKAGES[0],
    }
    report |= {"threads": threads, "new_tokens": new_tokens, "question": QUESTION}
    for found in measure(systems, dict(zip(counts, turns, strict=False)), new_tokens, clock, threads, work):
        report["open_s"] = {each.name: round(each.open_s, 2) for each in systems}
        report["tiles"] = found
        report["machine"]["load_average_after"] = psutil.getloadavg()[0]
        path = write_results("whole-answers", report, results)  # what there is survives a kill
    click.echo(table(report["tiles"], systems[0].name))
    for line in other_prompts(report["tiles"], systems[0].name):
        click.echo(f"\n{line}")
    click.echo(f"\n{path}")


if __name__ == "__main__":
    main()
