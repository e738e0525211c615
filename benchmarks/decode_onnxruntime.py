"""Prefill and decode speed of our ONNX Runtime engine against onnxruntime-genai's own generator, on the same weights.

A random Qwen2.5-0.5B-shaped decoder (`synth --preset internvl3-1b`), greedy, one sequence. Ours is the whole path of
the runner: embed graph, decoder graph, choosing the token. In float32 the two must generate the same tokens. In int4
both round every linear and the head to the nearest of symmetric 4-bit values in groups of 128, and compute with inputs
in float32 (exactly) or rounded to 8 bits.

    python benchmarks/decode_onnxruntime.py [--weights int4 --inputs int8] [--prompt 512] [--new-tokens 48]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import numpy as np
import torch
from measure import RESULTS, interleaved, machine, ratio, write_results
from pydantic import JsonValue

from r1v_export import contract
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig
from r1v_export.cpus import thread_count
from r1v_export.exporters.export import export_graph
from r1v_export.exporters.graph import Rewrite
from r1v_export.quantization.algorithms.rtn import round_to_nearest
from r1v_export.quantization.apply.onnx import quantizer
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.quantization.recipe import Recipe, resolve
from r1v_export.runner.kv_cache import KVCache
from r1v_export.targets.interface import BuildInputs
from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget
from r1v_export.targets.openvino.target import OpenVinoTarget
from r1v_export.targets.registry import get_target

OURS, PEER = "r1v-export", "onnxruntime-genai"
GROUP, HEAD = 128, "language_model.lm_head"


@dataclass(frozen=True)
class Variant:
    """What is compared: float32, or int4 weights with one of two arithmetics.

    Args:
        nodes_to_exclude: of genai's graph, which stay in float32.
        prune_head: let genai compute the logits of the last token of a prompt alone, as we do; its default is all.
    """

    weights: str
    inputs: Literal["exact", "int8"]
    nodes_to_exclude: str = ""
    prune_head: bool = False

    @property
    def name(self) -> str:
        name = self.weights if self.weights == "fp32" else f"{self.weights}-{self.inputs}-inputs"
        return f"{name}-pruned" if self.prune_head else name

    @property
    def genai_options(self) -> list[str]:
        """Of its model builder."""
        options = ["prune_lm_head=true"] if self.prune_head else []
        if self.weights != "fp32":
            level = 1 if self.inputs == "exact" else 4
            options += [f"block_size={GROUP}", "is_symmetric=true", f"accuracy_level={level}"]
        if self.nodes_to_exclude:
            options.append(f"nodes_to_exclude={self.nodes_to_exclude}")
        return ["-p", self.weights, *(["--extra_options", *options] if options else [])]

    def options(self, target: str) -> dict[str, JsonValue]:
        """Of one of our targets; OpenVINO by default rounds what float32 graphs multiply to bfloat16."""
        rounds_nothing = target == OpenVinoTarget.name and self.inputs == "exact"
        return {"int4_inputs": self.inputs} | ({"matmul": "float32"} if rounds_nothing else {})


def prepare(work: Path, variant: Variant) -> Checkpoint:
    """A checkpoint, its engine, and the same language model in genai's own format, made once."""
    checkpoint = make_checkpoint(work)
    build_engine(checkpoint, work, variant, "onnxruntime")
    if not (work / variant.name / "genai_config.json").exists():
        build_genai(checkpoint, work, variant)
    return checkpoint


def make_checkpoint(work: Path) -> Checkpoint:
    """A random checkpoint with a language model of Qwen2.5-0.5B's shape, made once."""
    if not (work / "checkpoint").exists():
        synthesize(work / "checkpoint", preset="internvl3-1b", vision_layers=1, dtype="float32")
    return Checkpoint.open(work / "checkpoint")


def build_engine(
    checkpoint: Checkpoint, work: Path, variant: Variant, name: str, target: str = OnnxRuntimeTarget.name
) -> Path:
    """A target's engine in the folder `name` of the bundle of these weights, lowered anew; the graphs are made once."""
    graphs = work / variant.weights / "graphs"
    engine = work / variant.weights / "engines" / name
    shutil.rmtree(engine, ignore_errors=True)
    engine.mkdir(parents=True)
    graphs.mkdir(exist_ok=True)
    for graph in OnnxRuntimeTarget.graphs:
        if not (graphs / f"{graph}.onnx").exists():
            rewrite = rounding(checkpoint) if variant.weights == "int4" and graph == contract.DECODER else None
            export_graph(graph, checkpoint, graphs, torch.float32, rewrite=rewrite)
    config = BuildConfig(targets={target: variant.options(target)})
    get_target(target).build(BuildInputs(graphs, checkpoint, None, config), engine, lambda _: None)
    return engine


def rounding(checkpoint: Checkpoint) -> Rewrite:
    """Rounds every linear of the language model, its head too."""

    def linear(name: str) -> QuantizedLinear:
        return round_to_nearest(checkpoint.read(f"{name}.weight"), "int4", GROUP)

    return quantizer(checkpoint.spec, resolve(int4_recipe(), checkpoint.spec), linear, {})


def int4_recipe(group_size: int = GROUP) -> Recipe:
    """Every linear of the language model, its head too, rounded to nearest."""
    weights = {"type": "int4", "granularity": "group", "group_size": group_size, "algorithm": "rtn"}
    rules = [{"modules": ["language_model.*", HEAD], "scheme": {"weights": weights}}]
    return Recipe.model_validate({"name": "int4", "description": "Rounded to nearest.", "rules": rules})


def build_genai(checkpoint: Checkpoint, work: Path, variant: Variant) -> None:
    """Write the language model as a transformers Qwen2 folder and let onnxruntime-genai's builder convert it."""
    from safetensors.torch import save_file

    folder, prefix = work / "qwen2", "language_model."
    folder.mkdir(exist_ok=True)
    config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))["llm_config"]
    # Dynamic rope scaling does nothing within the trained length, and genai's builder knows none.
    config |= {"torch_dtype": "float32", "rope_scaling": None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in checkpoint.folder.iterdir():
        if file.name.startswith(("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "generation")):
            shutil.copy(file, folder)
    names = [name for name in checkpoint.tensors if name.startswith(prefix)]
    tensors = {name.removeprefix(prefix): checkpoint.read(name).contiguous() for name in names}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    paths = ["-e", "cpu", "-i", str(folder), "-o", str(work / variant.name), "-c", str(work / "cache")]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *paths, *variant.genai_options]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    shutil.rmtree(folder)


class Ours:
    """Our engine, driven as the runner drives it."""

    def __init__(self, bundle: Path, checkpoint: Checkpoint, threads: int) -> None:
        engine_folder = bundle / "engines" / "onnxruntime"
        self.engine = OnnxRuntimeEngine(engine_folder, bundle, checkpoint.spec.sizes, "cpu", threads)
        self.engine.begin_decoder(alone=True)  # as `run` opens it
        self.no_images = np.zeros((0, checkpoint.spec.language.hidden_size), dtype=np.float32)

    def generate(self, prompt: list[int], new_tokens: int, capacity: int) -> tuple[list[int], list[float]]:
        """New tokens, and the moments in seconds at which prefill began and each token was there."""
        cache = KVCache(self.engine.decoder(1, capacity))
        tokens, chunk, moments = [], prompt, [time.perf_counter()]
        while len(tokens) < new_tokens:
            logits_1V = cache.append(self.engine.embed(np.array([chunk]), self.no_images), np.array([len(chunk)]))
            tokens.append(int(logits_1V[0].argmax()))
            chunk = tokens[-1:]
            moments.append(time.perf_counter())
        return tokens, moments


class GenAI:
    """onnxruntime-genai's generator."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai as og

        self.og = og
        config = og.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = og.Model(config)

    def generate(self, prompt: list[int], new_tokens: int, capacity: int) -> tuple[list[int], list[float]]:
        """As `Ours.generate`."""
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=capacity, do_sample=False, past_present_share_buffer=True)
        generator = self.og.Generator(self.model, params)
        moments = [time.perf_counter()]
        generator.append_tokens(np.array([prompt], dtype=np.int32))
        for _ in range(new_tokens):
            generator.generate_next_token()
            moments.append(time.perf_counter())
        return [int(token) for token in generator.get_sequence(0)[len(prompt) :]], moments


def readings(moments: list[float], prompt_tokens: int) -> dict[str, float]:
    """Tokens per second up to the first token, and after it."""
    start, first, last = moments[0], moments[1], moments[-1]
    return {
        "prefill_tokens_per_s": prompt_tokens / (first - start),
        "decode_tokens_per_s": (len(moments) - 2) / (last - first),
    }


@click.command()
@click.option("--weights", type=click.Choice(["fp32", "int4"]), default="fp32", show_default=True)
@click.option("--inputs", type=click.Choice(["exact", "int8"]), default="exact", show_default=True)
@click.option("--prompt", "prompt_tokens", default=512, show_default=True)
@click.option("--new-tokens", default=48, show_default=True)
@click.option("--capacity", "capacities", multiple=True, type=int, default=(576, 4096), show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--threads", default=thread_count().count, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-benchmark-decode"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    weights: str,
    inputs: Literal["exact", "int8"],
    prompt_tokens: int,
    new_tokens: int,
    capacities: tuple[int, ...],
    repeats: int,
    threads: int,
    work: Path,
    results: Path,
) -> None:
    variant = Variant(weights, inputs)
    checkpoint = prepare(work, variant)
    report = {"machine": machine(("onnxruntime", "onnxruntime-genai", "numpy")), "threads": threads, "capacity": {}}
    ours, genai = Ours(work / weights, checkpoint, threads), GenAI(work / variant.name, threads)
    prompt = np.random.default_rng(0).integers(1000, 100_000, prompt_tokens).tolist()
    for capacity in capacities:
        tokens = {}

        def measure(
            name: str, engine: Ours | GenAI, capacity: int = capacity, tokens: dict = tokens
        ) -> dict[str, float]:
            tokens[name], moments = engine.generate(prompt, new_tokens, capacity)
            return readings(moments, prompt_tokens)

        contenders = {OURS: lambda m=measure: m(OURS, ours), PEER: lambda m=measure: m(PEER, genai)}
        measured = interleaved(contenders, repeats)
        if weights == "fp32" and tokens[OURS] != tokens[PEER]:
            raise SystemExit(f"the engines disagree: {tokens}")
        ratios = {q: ratio(measured, OURS, PEER, q) for q in ("prefill_tokens_per_s", "decode_tokens_per_s")}
        report["capacity"][capacity] = {"ratio_to_genai": ratios, **measured}
        click.echo(f"capacity {capacity}: ours / genai = {ratios}")
    report |= {"variant": variant.name, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats}
    click.echo(write_results(f"decode-onnxruntime-{variant.name}", report, results))


if __name__ == "__main__":
    main()
