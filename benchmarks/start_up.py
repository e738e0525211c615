"""From the start of a process to its first token: `r1v-export run`, onnxruntime-genai and llama.cpp, files in the page
cache; and opening an INT4 decoder of the 38B's width, over one read of its bytes.

`serving_model.py`'s random model of Qwen2-0.5B's shape. The linears of its layers have 4 bits, in groups of 128 (of 32
in llama.cpp's Q4_0); embeddings are float32, and so is genai's head, while ours has 8 bits; both are bfloat16 in
llama.cpp's file. `headed` has a head in 4 bits, too. The vocabulary has 151,643 tokens. Each turn of each engine is a
process that ends at its first token: ours is the whole command; the others are `start_up_engine.py`, given the text of
the whole prompt, template included, of which they have to make the tokens that ours makes. What ours keeps in the
user's cache folder, weights in their kernel's layout and the vocabulary, is there before it is measured.

    python benchmarks/start_up.py --genai DIR --llama ENVIRONMENT [--prepare]
    python benchmarks/start_up.py --only slice

--prepare makes what is missing, minutes of it, and measures nothing. DIR: `pip install --no-deps --target DIR
onnxruntime-genai==0.18.0`; without it there is no genai. ENVIRONMENT: a virtual environment with xllamacpp; likewise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import psutil
import tokenizers
import torch
from decode_onnxruntime import Variant, build_genai, int4_recipe, rounding
from long_contexts_engine import resident_bytes
from measure import RESULTS, machine, write_results
from serving_model import SETTINGS, Model

from r1v_export import contract
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.cpus import thread_count
from r1v_export.exporters.export import export_graph
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.prompt_encoder import Request
from r1v_export.targets.onnxruntime.write.graphs import write_graphs

PROJECT = Path(__file__).parents[1]
QUESTION = "How many objects?"
LIMIT_S = 120
"""Of one process."""
WITHOUT_HEAD = "/lm_head/MatMul,/model/embed_tokens/Gather"
"""genai's nodes that stay in float32, as ours do."""
SLICE_LAYERS = 1
SLICE = {
    **{key: value for key, value in SETTINGS.items() if key.startswith("vision_config.")},
    "force_image_size": 112,
    "llm_config.vocab_size": 4096,
}
"""What differs from the 38B: a small vision tower, and few words."""


@dataclass(frozen=True)
class Contender:
    """An engine that is started for one token.

    Args:
        command: that is run.
        text: what it reads from stdin, if anything.
        sign: what is in its output as soon as there is a token; any output at all if it is empty.
        path: folders that it imports from, before others.
    """

    name: str
    command: tuple[str, ...]
    text: str = ""
    sign: bytes = b""
    path: tuple[Path, ...] = ()

    def start(self, threads: int) -> dict[str, float]:
        """Run it: seconds until its first token, processor seconds until then, peak memory.

        Raises:
            RuntimeError: it ends without a token, or takes longer than `LIMIT_S`.
        """
        variables = {"PYTHONPATH": os.pathsep.join(map(str, self.path)), "OMP_NUM_THREADS": str(threads)}
        begin = time.perf_counter()
        process = subprocess.Popen(
            self.command, env=os.environ | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        try:
            process.stdin.write(self.text.encode())
            process.stdin.close()
            output = b""
            while not (output and self.sign in output):
                time.sleep(0.001)
                # Before the read, since it may print and end between the two; not by poll(), which reaps it.
                ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
                output += (new := process.stdout.read()) or b""
                if not new and (ended or time.perf_counter() - begin > LIMIT_S):
                    raise RuntimeError(f"{self.name} gave no token")
            seconds = time.perf_counter() - begin
            peak_bytes = resident_bytes("VmHWM", process.pid)  # what wait4 says is at least what this process has
            process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
            process.stdin.close()
            process.stdout.close()
        return {
            "first_token_s": seconds,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_mb": peak_bytes / 1e6,
        }


class Prepared:
    """What is measured, below one folder.

    Args:
        work: the folder.
        genai, llama: the peers' packages, or None.
    """

    def __init__(self, work: Path, genai: Path | None, llama: Path | None) -> None:
        self.work, self.genai, self.llama = work, genai, llama
        self.model = Model(work / "model-full-vocabulary", full_vocabulary=True)

    @property
    def headed(self) -> Path:
        return self.work / "headed"

    def genai_model(self, variant: Variant) -> Path:
        return self.work / f"genai-{variant.name}{'' if variant.nodes_to_exclude else '-headed'}"

    @property
    def variants(self) -> dict[str, Variant]:
        """genai's models by name, of the head that ours has."""
        return {
            "genai": Variant("int4", "int8", WITHOUT_HEAD, prune_head=True),
            "genai headed": Variant("int4", "int8", prune_head=True),
        }

    def make(self) -> None:
        """Make what is missing; killed, it goes on."""
        self.model.prepare("int4", *(["gguf4"] if self.llama else []))
        if not (self.headed / "manifest.json").exists():
            recipe = self.work / "headed.yaml"
            recipe.write_text(int4_recipe().to_yaml(), encoding="utf-8")
            options = ["--precision", "int4", "--recipe", str(recipe), "--no-parity", "-o", str(self.headed)]
            command = [sys.executable, "-m", "r1v_export.cli.main", "build", str(self.model.checkpoint), *options]
            subprocess.run(command, check=True, stdout=sys.stderr)
        if self.genai is None:
            return
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(self.genai), before]))
        for variant in self.variants.values():
            made = self.genai_model(variant)
            if not (made / "genai_config.json").exists():
                build_genai(Checkpoint.open(self.model.checkpoint), self.work, variant)
                (self.work / variant.name).rename(made)
        os.environ["PYTHONPATH"] = before or ""

    def contenders(self, threads: int) -> list[Contender]:
        """Those that can run, ours first."""
        bundles = {"r1v-export": self.model.bundle("int4"), "r1v-export headed": self.headed}
        asked = open_runner(bundles["r1v-export"]).tokenize(Request.ask(QUESTION))
        library = tokenizers.Tokenizer.from_file(str(self.model.checkpoint / "tokenizer.json"))
        text = library.decode(asked, skip_special_tokens=False)
        found = [
            Contender(name, (*_COMMAND, "run", str(bundle), *_options(threads), QUESTION), path=(PROJECT,))
            for name, bundle in bundles.items()
        ]

        def peer(name: str, python: Path, kind: str, model: Path, *path: Path) -> Contender:
            script = str(PROJECT / "benchmarks" / "start_up_engine.py")
            numbers = str(threads), str(len(asked) + 9), ",".join(map(str, asked))
            return Contender(name, (str(python), script, kind, str(model), *numbers), text, b'"token"', path)

        if self.genai is not None:
            for name, variant in self.variants.items():
                found.append(peer(name, Path(sys.executable), "genai", self.genai_model(variant), self.genai))
        if self.llama is not None:
            model = self.model.bundle("gguf4") / "engines" / "gguf" / "model.gguf"
            found.append(peer("llama.cpp Q4_0", self.llama / "bin" / "python", "llama", model))
        return found


_COMMAND = (sys.executable, "-m", "r1v_export.cli.main")


def _options(threads: int) -> list[str]:
    return ["--greedy", "--max-new-tokens", "1", "--threads", str(threads)]


def first_tokens(contenders: Sequence[Contender], turns: int, threads: int) -> dict[str, Any]:
    """Turns, after one unmeasured one; medians, and each peer's time over ours within a turn.

    A contender that fails is not started again, and its error is in the result.
    """
    readings: dict[str, list[dict[str, float]]] = {each.name: [] for each in contenders}
    errors: dict[str, str] = {}
    for turn in range(turns + 1):
        for each in [each for each in contenders if each.name not in errors]:
            try:
                reading = each.start(threads) | {"load_average": psutil.getloadavg()[0]}
            except (RuntimeError, OSError) as error:
                errors[each.name] = str(error)
                continue
            if turn:
                readings[each.name].append(reading)
                seconds, cpu_s = reading["first_token_s"], reading["cpu_s"]
                print(f"  {each.name:20} {seconds:6.2f} s, {cpu_s:6.2f} CPU s", file=sys.stderr, flush=True)
    whole = {name: found for name, found in readings.items() if len(found) == turns}
    medians = {
        name: {quantity: statistics.median(each[quantity] for each in found) for quantity in found[0]}
        for name, found in whole.items()
    }
    return {"ratios": ratios(whole), "medians": medians, "errors": errors, "readings": readings}


def ratios(readings: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each peer over ours, the median of those within a turn: above 1, ours is the faster or the smaller."""
    ours = [name for name in readings if name.startswith("r1v-export")]
    peers = [name for name in readings if name not in ours]
    found = {}
    for our, peer in [(our, peer) for our in ours for peer in peers]:
        pairs = list(zip(readings[our], readings[peer], strict=True))
        quantities = ("first_token_s", "cpu_s", "peak_mb")
        found[f"{peer} / {our}"] = {
            quantity: round(statistics.median(theirs[quantity] / own[quantity] for own, theirs in pairs), 3)
            for quantity in quantities
        }
    return found


def make_slice(work: Path) -> tuple[Path, Path]:
    """A checkpoint of the 38B's width with one layer and few words, and its decoder's engine."""
    checkpoint, bundle = work / "slice", work / "slice-int4"
    engine = bundle / "engines" / "onnxruntime"
    if not (engine / "decoder.onnx").exists():
        if not checkpoint.exists():
            synthesize(checkpoint, preset="r1v3-38b", vision_layers=1, language_layers=SLICE_LAYERS, overrides=SLICE)
        for folder in (bundle / "graphs", engine):
            folder.mkdir(parents=True, exist_ok=True)
        opened = Checkpoint.open(checkpoint)
        export_graph(contract.DECODER, opened, bundle / "graphs", torch.float32, rewrite=rounding(opened))
        write_graphs(bundle / "graphs", [contract.DECODER], "cpu", "int8", engine)
    return checkpoint, engine


def open_slice(work: Path, turns: int, threads: int) -> dict[str, Any]:
    """Opening the slice over reading it, files in the page cache and not, with and without what an earlier process
    kept; medians of processes by turns, after one that is not measured and keeps it."""
    checkpoint, engine = make_slice(work)
    sizes = json.dumps(asdict(Checkpoint.open(checkpoint).spec.sizes))
    script, report = PROJECT / "benchmarks" / "start_up_slice.py", {}
    variables = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": str(threads)}
    common = [sys.executable, str(script), str(engine), sizes, str(threads)]

    def measure(cached: bool, keep: bool) -> dict[str, float]:
        command = [*common, str(int(cached)), str(int(keep))]
        out = subprocess.run(command, env=variables, check=True, capture_output=True, text=True, timeout=LIMIT_S)
        reading: dict[str, float] = json.loads(out.stdout)
        return reading

    measure(cached=True, keep=True)
    for keep in (True, False):
        for cached in (True, False):
            name = f"{'kept' if keep else 'not kept'}, {'in the page cache' if cached else 'from disk'}"
            readings = [measure(cached, keep) for _ in range(turns)]
            over = statistics.median(each["open_s"] / each["read_s"] for each in readings)
            report[name] = {"open_over_read": round(over, 2), "readings": readings}
            print(f"  {name}: open / read = {over:.2f}", file=sys.stderr, flush=True)
    return report


@click.command()
@click.option("--turns", default=7, show_default=True)
@click.option("--threads", default=thread_count().count, show_default=True)
@click.option("--genai", type=click.Path(path_type=Path, exists=True), help="Folder with onnxruntime-genai.")
@click.option("--llama", type=click.Path(path_type=Path, exists=True), help="Environment with xllamacpp.")
@click.option("--only", type=click.Choice(["first-token", "slice"]), help="One of the two parts.")
@click.option("--prepare", is_flag=True, help="Make what is missing, and measure nothing.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-start-up"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    turns: int,
    threads: int,
    genai: Path | None,
    llama: Path | None,
    only: str | None,
    prepare: bool,
    work: Path,
    results: Path,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")  # nobody else's, and empty at first
    prepared = Prepared(work, genai, llama)
    if only != "slice":
        prepared.make()
    if only != "first-token":
        make_slice(work)
    if prepare:
        return
    report: dict[str, Any] = {"machine": machine(("onnxruntime", "numpy")), "threads": threads, "turns": turns}
    if only != "slice":
        report["first_token"] = first_tokens(prepared.contenders(threads), turns, threads)
        click.echo(json.dumps(report["first_token"]["ratios"], indent=2))
        click.echo(write_results("start-up", report, results))  # what there is survives a kill
    if only != "first-token":
        report["slice"] = open_slice(work, turns, threads)
        click.echo(json.dumps({name: part["open_over_read"] for name, part in report["slice"].items()}))
    click.echo(write_results("start-up", report, results))


if __name__ == "__main__":
    main()
