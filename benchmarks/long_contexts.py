"""Prefill, decoding and memory behind 1k, 4k, 16k (and 32k) tokens: ours, onnxruntime-genai, OpenVINO and llama.cpp.

A random Qwen2.5-0.5B-shaped decoder, one sequence of random tokens. Prompts go in by 512 tokens, as our runner does;
genai is given the same pieces and computes logits of the last token alone, as we do (`prune_lm_head`, which is not its
default); OpenVINO runs as our target `openvino`; llama.cpp takes its own pieces, of 512 too. Each engine is a process
of its own (`long_contexts_engine.py`), one after the other: in each turn it loads its model, answers every length once,
and ends, as in `whole_answers.py`. A median of 256 steps, because ONNX Runtime's default kernel of attention is slow at
some lengths: its sums lie in memory across two pages there, for up to 64 tokens of every 1,024, and where depends on
what else a process has allocated.

INT4 rounds every linear and the head to the nearest in groups of 128; llama.cpp's are its Q4_0, in groups of 32, the
head too. Against our float32 it has F32.

Attention makes prompts of 16k and 32k tokens take minutes. With `--goes-on` a turn is one prompt that grows: each
engine keeps its model, and the keys and values of 1,024 tokens for the 4,096 that begin with them, and so on, and its
seconds are added up. genai's cache has all of its slots from the first length on then. With `--rounds` engines decode
by turns behind each length, since a virtual machine is faster or slower some minutes later. The model has 32,768
positions, so that 32,256 is the longest prompt that leaves room for 256 tokens and whole pieces.

    python benchmarks/long_contexts.py --weights int4 --genai DIR --llama ENVIRONMENT
    python benchmarks/long_contexts.py --weights int4 --genai DIR --llama ENVIRONMENT --goes-on --turns 1 \
        --tokens 1024 --tokens 4096 --tokens 16384 --tokens 32256

DIR: `pip install --no-deps --target DIR onnxruntime-genai==0.18.0`; without it there is no genai. ENVIRONMENT: a
virtual environment with xllamacpp; likewise.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import psutil
from decode_onnxruntime import GROUP, Variant, build_engine, build_genai, int4_recipe, make_checkpoint
from engine_process import EngineProcess
from long_contexts_engine import SIZES
from measure import RESULTS, machine, write_results

from r1v_export import contract
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.cpus import thread_count
from r1v_export.quantization.apply.onnx import QuantizeCache
from r1v_export.targets.decoders import DECODER
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget
from r1v_export.targets.onnxruntime.write.graphs import decoder_for_others
from r1v_export.targets.openvino.target import OpenVinoTarget

PROJECT = Path(__file__).parents[1]
WARM_UP = {"tokens": 512, "new_tokens": 64}
"""Ours brings weights into layouts for prompts of 128 tokens or more, too, and into huge pages while it decodes."""
LLAMA_GROUP = 32


@dataclass
class Contender(EngineProcess):
    """An engine that waits for jobs.

    Args:
        arguments: of `long_contexts_engine.py`, without threads and context.
        python: that runs it.
        path: folders that it imports from, before others.
    """

    arguments: tuple[str, ...]
    python: Path = Path(sys.executable)
    path: tuple[Path, ...] = (PROJECT,)

    def start(self, threads: int, context: int, warm_up: Mapping[str, int]) -> None:
        """Load the model, and answer a prompt, which is not measured."""
        script = PROJECT / "benchmarks" / "long_contexts_engine.py"
        variables = {"PYTHONPATH": os.pathsep.join(map(str, self.path)), "OMP_NUM_THREADS": str(threads)}
        self.launch([self.python, script, *self.arguments, str(threads), str(context)], variables)
        self.ask(warm_up)


def prepare(work: Path, weights: str, genai: Path | None, llama: Path | None) -> list[Contender]:
    """Build what is not there, and name the engines: ours first."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = make_checkpoint(work)
    contenders, peers = [], []
    for inputs in ("exact", "int8") if weights == "int4" else ("exact",):
        variant = Variant(weights, inputs, prune_head=True)
        suffix = f" {inputs}" if weights == "int4" else ""
        engine = our_engine(checkpoint, work, variant, OnnxRuntimeTarget.name)
        if weights == "int4":
            graphs = work / weights / "graphs"
            (part := engine / DECODER / OpenVinoTarget.name).mkdir(parents=True)
            OpenVinoTarget().write_decoder(decoder_for_others(graphs, variant.inputs), graphs, variant.inputs, part)
        contenders.append(Contender(f"r1v-export{suffix}", ("ours", str(engine))))
        if inputs == "int8":
            cached = with_int8_cache(checkpoint, work, variant)
            contenders.append(Contender("r1v-export int8 cache", ("ours", str(cached))))
        engine = our_engine(checkpoint, work, variant, OpenVinoTarget.name)
        peers.append(Contender(f"r1v-export openvino{suffix}", ("openvino", str(engine))))
        if genai is not None:
            if not (work / variant.name / "genai_config.json").exists():
                os.environ["PYTHONPATH"] = str(genai)
                build_genai(checkpoint, work, variant)
            peers.append(Contender(f"genai{suffix}", ("genai", str(work / variant.name)), path=(genai,)))
    if llama is not None:
        kind = "Q4_0" if weights == "int4" else "F32"
        model = build_gguf(work, weights)
        peers.append(Contender(f"llama.cpp {kind}", ("llama", str(model)), llama / "bin" / "python", ()))
    return contenders + peers


def our_engine(checkpoint: Checkpoint, work: Path, variant: Variant, target: str, suffix: str = "") -> Path:
    """The engine of one of our targets, with the sizes that its process cannot read elsewhere."""
    engine = build_engine(checkpoint, work, variant, f"{target}-{variant.inputs}{suffix}", target)
    (engine / SIZES).write_text(json.dumps(asdict(checkpoint.spec.sizes)), encoding="utf-8")
    return engine


def with_int8_cache(checkpoint: Checkpoint, work: Path, variant: Variant) -> Path:
    """Our engine with its cache in INT8. Scales are made up: they change no time."""
    layers, decoder = checkpoint.spec.sizes.layers, work / variant.weights / "graphs" / f"{contract.DECODER}.onnx"
    plain = decoder.read_bytes()
    model = ir.load(decoder)
    QuantizeCache({f"layers.{layer}": "int8" for layer in range(layers)})(model)
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = ir.tensor(np.float32(0.05), name=name)
    try:
        ir.save(model, decoder)
        return our_engine(checkpoint, work, variant, OnnxRuntimeTarget.name, "-cache")
    finally:
        decoder.write_bytes(plain)


def build_gguf(work: Path, weights: str) -> Path:
    """The same language model as a GGUF file, by our own target."""
    out = work / f"gguf-{weights}"
    model = out / "engines" / "gguf" / "model.gguf"
    if not model.exists():
        recipe = work / "q4_0.yaml"
        recipe.write_text(int4_recipe(LLAMA_GROUP).to_yaml(), encoding="utf-8")
        chosen = ["--recipe", str(recipe)] if weights == "int4" else ["--precision", "fp32"]
        command = [sys.executable, "-m", "r1v_export.cli.main", "build", str(work / "checkpoint"), "--target", "gguf"]
        subprocess.run([*command, *chosen, "--no-parity", "-o", str(out)], check=True, stdout=sys.stderr)
    return model


Readings = dict[int, dict[str, list[dict[str, Any]]]]
"""Of each contender, by length."""


def one_by_one(
    contenders: Sequence[Contender],
    lengths: Sequence[int],
    job: Mapping[str, int],
    turns: int,
    start: Callable[[Contender], None],
) -> Iterator[Readings]:
    """Every contender's answers to all lengths while it is the only one; what there is after each turn."""
    readings: Readings = {tokens: {each.name: [] for each in contenders} for tokens in lengths}
    for _ in range(turns):
        for each in contenders:
            start(each)
            for tokens in lengths:
                answer = ask(each, {**job, "tokens": tokens, "goes_on": False}, [])
                readings[tokens][each.name].append(answer)
                show(each, tokens, answer)
            each.stop()
        yield readings


def growing(
    contenders: Sequence[Contender], lengths: Sequence[int], job: Mapping[str, int], turns: int, rounds: int
) -> Iterator[Readings]:
    """The same of contenders that keep their models: a turn is one prompt that grows from length to length.

    Behind each length the others of the `rounds` follow, in which contenders decode by turns, each behind one token
    more.
    """
    readings: Readings = {tokens: {each.name: [] for each in contenders} for tokens in lengths}
    parts: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for turn, tokens in itertools.product(range(turns), lengths):
        for each in contenders:
            earlier = parts.setdefault((turn, each.name), [])
            answer = ask(each, {**job, "tokens": tokens, "goes_on": True}, earlier)
            readings[tokens][each.name].append(answer)
            show(each, tokens, answer)
        for number, each in itertools.product(range(1, rounds), contenders):
            more = each.ask({**job, "tokens": tokens + number, "goes_on": True})["steps_s"]
            answer = readings[tokens][each.name][-1]
            answer["rounds_s"].append(statistics.median(more))
            answer["steps_s"] += more
        yield readings


def show(contender: Contender, tokens: int, answer: Mapping[str, Any]) -> None:
    rate, step_ms = tokens / answer["prefill_s"], 1e3 * statistics.median(answer["steps_s"])
    line = f"{tokens:6} tokens {contender.name:26} {rate:8.1f} prompt tokens/s, {step_ms:7.1f} ms a token"
    print(f"{line}, load average {answer['load_average']:.2f}", file=sys.stderr, flush=True)


def ask(contender: Contender, job: Mapping[str, Any], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """A reading; of a prompt that goes on, `prefill_s` and the memory are those of all of its parts.

    Args:
        earlier: readings of the parts before; this one is added.
    """
    answer = contender.ask(job) | {"load_average": psutil.getloadavg()[0]}
    answer["rounds_s"] = [statistics.median(answer["steps_s"])]
    answer["part_s"] = answer["prefill_s"]
    answer["prefill_s"] += sum(part["part_s"] for part in earlier)
    answer["loaded_bytes"] = earlier[0]["loaded_bytes"] if earlier else answer["loaded_bytes"]
    earlier.append(answer)
    return answer


def summary(prompt: int, new_tokens: int, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of one engine's readings behind a prompt of some length, and the readings."""
    tokens = prompt + new_tokens
    beyond = max(answer["peak_bytes"] - answer["loaded_bytes"] for answer in answers)
    first, cache = answers[0], answers[0]["cache_bytes"]
    return {
        "prefill_tokens_per_s": prompt / statistics.median(answer["prefill_s"] for answer in answers),
        "decode_tokens_per_s": 1 / statistics.median(step for answer in answers for step in answer["steps_s"]),
        "peak_bytes": max(answer["peak_bytes"] for answer in answers),
        # Of the first job at a length, since an engine may keep what it has allocated for the next one.
        "bytes_per_token": round((first["peak_bytes"] - first["loaded_bytes"]) / tokens),
        "largest_bytes_beyond_the_loaded_model": beyond,
        "cache_bytes_per_token": None if cache is None else round(cache / tokens),
        "readings": answers,
    }


def ratios(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Each of ours against each peer: above 1, ours is the faster."""
    found = {}
    for ours in (name for name in measured if name.startswith("r1v-export")):
        for peer in (name for name in measured if not name.startswith("r1v-export")):
            found[f"{ours} / {peer}"] = {
                quantity: round(measured[ours][quantity] / measured[peer][quantity], 3)
                for quantity in ("prefill_tokens_per_s", "decode_tokens_per_s")
            }
    return found


@click.command()
@click.option("--weights", type=click.Choice(["fp32", "int4"]), required=True)
@click.option("--tokens", "lengths", type=int, multiple=True, default=(1024, 4096, 16384), show_default=True)
@click.option("--new-tokens", type=click.IntRange(3), default=256, show_default=True)
@click.option("--turns", default=3, show_default=True)
@click.option(
    "--goes-on", is_flag=True, help="One prompt a turn, which grows from length to length: the time of the longest."
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="With --goes-on: how often engines decode by turns behind each length.",
)
@click.option(
    "--engine", "engines", multiple=True, help="Those whose name has it in it; may be repeated. [default: all]"
)
@click.option("--except", "excepted", multiple=True, help="Not those whose name has it in it; may be repeated.")
@click.option("--threads", default=thread_count().count, show_default=True)
@click.option("--genai", type=click.Path(path_type=Path, exists=True), help="Folder with onnxruntime-genai.")
@click.option("--llama", type=click.Path(path_type=Path, exists=True), help="Environment with xllamacpp.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-long-contexts"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    weights: str,
    lengths: tuple[int, ...],
    new_tokens: int,
    turns: int,
    goes_on: bool,
    rounds: int,
    engines: tuple[str, ...],
    excepted: tuple[str, ...],
    threads: int,
    genai: Path | None,
    llama: Path | None,
    work: Path,
    results: Path,
) -> None:
    os.environ["XDG_CACHE_HOME"] = str(work / "kept")  # what ours keeps of 4-bit weights
    contenders = [
        each
        for each in prepare(work, weights, genai, llama)
        if (not engines or any(part in each.name for part in engines))
        and not any(part in each.name for part in excepted)
    ]
    spec = make_checkpoint(work).spec
    if max(lengths) + new_tokens > spec.language.max_position_embeddings:
        raise click.BadParameter(
            f"the model has {spec.language.max_position_embeddings} positions", param_hint="--tokens"
        )
    if rounds > 1 and not goes_on:
        raise click.BadParameter("each round goes on from the one before: add --goes-on", param_hint="--rounds")
    vocabulary = {"vocabulary": spec.sizes.vocab}
    report: dict[str, Any] = {"machine": machine(("onnxruntime", "numpy")), "threads": threads, "weights": weights}
    report |= {"group_size": {"ours and genai": GROUP, "llama.cpp": LLAMA_GROUP}} if weights == "int4" else {}
    report |= {"turns": turns, "new_tokens": new_tokens, "goes_on": goes_on, "rounds": rounds, "lengths": {}}
    try:
        context, job = max(lengths) + new_tokens + 8, {"new_tokens": new_tokens} | vocabulary

        def start(each: Contender) -> None:
            each.start(threads, context, WARM_UP | vocabulary)

        for each in contenders:
            if each.name.startswith("r1v-export"):
                start(each)
                each.stop()  # the first process also kept what it made of the weights, as with `run`
            if goes_on:
                start(each)
        found = (
            growing(contenders, sorted(lengths), job, turns, rounds)
            if goes_on
            else one_by_one(contenders, sorted(lengths), job, turns, start)
        )
        for readings in found:
            for tokens, answers in readings.items():
                if not all(answers.values()):
                    continue
                measured = {name: summary(tokens, new_tokens, each) for name, each in answers.items()}
                report["lengths"][str(tokens)] = {"ratios": ratios(measured), "engines": measured}
            click.echo(write_results(f"long-contexts-{weights}", report, results))  # what there is survives a kill
    finally:
        for each in contenders:
            each.stop()


if __name__ == "__main__":
    main()
