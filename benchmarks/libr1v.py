"""libr1v's program against the Python runner, and against onnxruntime-genai's C API: answers, decoding, starts, memory.

    PYTHONPATH=. .venv/bin/python benchmarks/libr1v.py --work /tmp/libr1v --prepare
    PYTHONPATH=. .venv/bin/python benchmarks/libr1v.py --work /tmp/libr1v [--only decode] [--repeats 4]

--prepare builds `r1v` as it is installed, the models (r1v-nano, and serving_model.py's language model of Qwen2-0.5B's
shape) and an environment with onnxruntime-genai, whose own builder converts the same weights. Then the peers take
turns, a process each, with the same prompts, images, numbers of tokens and threads, and the same ONNX Runtime:

* answer: time to the first token of a whole question about an image, and tokens/s after it. libr1v's is the time of a
  client, with reading the image; Python's is the sum of its stages, without it.
* decode: tokens/s of a prompt of text only, by libr1v and by onnxruntime-genai. In float32 both must answer the same.
* start: from the start of the process until its first character, or token; files are in the page cache.
* memory: what is resident after an answer, without weights and key-value cache, and what of that is code: pages of the
  program and its libraries, which processes share. Weights are the files that ONNX Runtime copies as it prepares them
  (decoder, vision tower, projector), and what is resident of mapped files of the model; the cache counts with the bytes
  of the tokens in it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any

import click
import onnxruntime
import psutil
from decode_onnxruntime import Variant, build_genai
from environments import environment_of
from measure import interleaved, machine, newest_results, write_results
from serving_model import Model

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.prompt_encoder import Request

HERE = Path(__file__).parent
PROJECT = HERE.parent
IMAGE, QUESTION = PROJECT / "examples/images/06-count.png", "How many objects do you see?"
TEXT = " ".join(f"{number} {'abcdefghij'[number % 10]}" for number in range(100, 150))
"""With the template about 500 tokens of the model of 0.5B, whose tokens are single letters and digits."""
PARTS = ("answer", "decode", "start", "memory")
GENAI = "onnxruntime-genai==0.18.0"
THREADS = psutil.cpu_count(logical=False)
NEW_TOKENS = {"nano": 32, "fp32": 24, "int4": 24}
"""Of answers about an image; nano ends its own after 33."""
DECODED = 32
LIBRARY = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
CUT_OFF = "cut off after"
"""What both programs say on stderr when an answer ends at its limit."""


@dataclass(frozen=True)
class Prepared:
    """What is measured, and where it is."""

    folder: Path

    @property
    def model(self) -> Model:
        return Model(self.folder / "model")

    def bundle(self, name: str) -> Path:
        return self.folder / "nano" if name == "nano" else self.model.bundle(name)

    def genai(self, name: str) -> Path:
        return self.folder / "genai" / VARIANTS[name].name

    @property
    def environment(self) -> Path:
        return self.folder / "genai" / "environment"

    @property
    def r1v(self) -> Path:
        return self.folder / "build/engines/cli/r1v"

    @property
    def genai_answer(self) -> Path:
        return self.folder / "genai" / "genai_answer"

    def prepare(self) -> None:
        """Make what is not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ("-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DR1V_BUILD_TESTS=OFF")
        _run("cmake", "-S", PROJECT, "-B", self.folder / "build", *options)
        _run("ninja", "-C", self.folder / "build", "r1v_program")
        self.model.prepare(*VARIANTS)
        if not (self.bundle("nano") / "manifest.json").exists():
            _run(*_PYTHON, "build", "--precision", "fp32", "-o", self.bundle("nano"), "--no-parity")
        site = site_packages(environment_of(self.environment, ("install", "-q", "--no-deps", GENAI)))
        # The builder needs torch and transformers, which this environment has.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        for name, variant in VARIANTS.items():
            if not (self.genai(name) / "genai_config.json").exists():
                build_genai(Checkpoint.open(self.model.checkpoint), self.folder / "genai", variant)
        library = site / "onnxruntime_genai/libonnxruntime-genai.so"
        _run("cc", "-O2", "-o", self.genai_answer, HERE / "genai_answer.c", library, f"-Wl,-rpath,{library.parent}")


# Our int4 leaves embeddings in float32, and rounds inputs and the head to 8 bits.
VARIANTS = {
    "fp32": Variant("fp32", "exact"),
    "int4": Variant("int4", "int8", nodes_to_exclude="/lm_head/MatMul,/model/embed_tokens/Gather"),
}
_PYTHON = (sys.executable, "-m", "r1v_export.cli.main")


def site_packages(python: Path) -> Path:
    return next((python.parents[1] / "lib").glob("python3*/site-packages"))


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, stdout=sys.stderr)


def environment() -> dict[str, str]:
    """Under which every peer runs with the same ONNX Runtime."""
    return os.environ | {"R1V_ONNXRUNTIME": str(LIBRARY), "ORT_LIB_PATH": str(LIBRARY)}


def output_of(*words: object) -> str:
    return subprocess.run(list(map(str, words)), env=environment(), check=True, capture_output=True, text=True).stdout


# ---- the peers ----


def bench_libr1v(prepared: Prepared, name: str, tokens: int, *question: object) -> dict[str, float]:
    """Of `r1v bench`: ms to the first token, tokens/s after it, and both numbers of tokens."""
    out = output_of(
        prepared.r1v, "bench", prepared.bundle(name), "--threads", THREADS, "--tokens", tokens, "--runs", 1, *question
    )
    found = re.search(
        r"(\d+) prompt tokens, (\d+) new tokens.*\nfirst token after ([\d.]+) ms, then ([\d.]+) tokens/s", out
    )
    assert found is not None, out
    return _answer(*map(float, found.groups()))


def bench_python(prepared: Prepared, name: str, tokens: int, *question: object) -> dict[str, float]:
    """The same of `r1v-export bench`."""
    options = ("--threads", THREADS, "--tokens", tokens, "--runs", 1, "--format", "json")
    out = json.loads(output_of(*_PYTHON, "bench", prepared.bundle(name), *options, *question))
    return _answer(out["prompt_tokens"], out["new_tokens"], out["first_token_ms"], out["tokens_per_s"])


def _answer(prompt_tokens: float, new_tokens: float, first_token_ms: float, tokens_per_s: float) -> dict[str, float]:
    counts = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    return {"first_token_ms": first_token_ms, "tokens_per_s": tokens_per_s, **counts}


def genai_command(prepared: Prepared, name: str, prompt: Iterable[int], new_tokens: int, runs: int) -> list[str]:
    prompt = list(prompt)
    words = (prepared.genai_answer, prepared.genai(name), THREADS, len(prompt) + new_tokens, new_tokens, runs, *prompt)
    return list(map(str, words))


def bench_genai(prepared: Prepared, name: str, prompt: list[int]) -> dict[str, float]:
    """The same of genai_answer.c."""
    command = genai_command(prepared, name, prompt, DECODED, 1)
    out = subprocess.run(
        command, env=environment(), check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    first, last, *_ = map(float, out.stdout.splitlines()[1].split())
    return _answer(len(prompt), DECODED, first, (DECODED - 1) / (last - first) * 1e3)


def run_commands(prepared: Prepared, name: str, tokens: int) -> dict[str, list[str]]:
    """libr1v's and Python's `run` with a bundle."""
    options = ("run", prepared.bundle(name), "--threads", THREADS, "--greedy", "--max-new-tokens", tokens)
    return {
        peer: list(map(str, (*program, *options)))
        for peer, program in {"libr1v": (prepared.r1v,), "python": _PYTHON}.items()
    }


# ---- the parts ----


def compare(contenders: Mapping[str, Callable[[], dict[str, float]]], repeats: int, *better_low: str) -> dict[str, Any]:
    """Turns, and of each quantity the median of the peers' ratio within a turn: above 1, libr1v is ahead.

    Args:
        better_low: quantities of which less is better.
    """
    load, started = psutil.getloadavg()[0], time.monotonic()
    results = interleaved(contenders, repeats)
    ours, ratios = results["libr1v"], {}
    for peer in [name for name in results if name != "libr1v"]:
        for quantity, values in ours.items():
            if quantity.endswith("_tokens"):
                assert values["median"] == results[peer][quantity]["median"], f"{quantity} of {peer} differ"
                continue
            pairs = zip(values["all"], results[peer][quantity]["all"], strict=True)
            each = [theirs / our if quantity in better_low else our / theirs for our, theirs in pairs]
            ratios[f"libr1v / {peer}, {quantity}"] = round(median(each), 3)
    print(json.dumps(ratios), flush=True)
    seconds = round(time.monotonic() - started)
    return {"load_average_before": round(load, 2), "seconds": seconds, "libr1v_ahead": ratios, "results": results}


def answers(prepared: Prepared, repeats: int) -> dict[str, Any]:
    """Whole answers about an image."""
    question = ("--image", IMAGE, "--question", QUESTION)
    return {
        name: compare(
            {
                "libr1v": partial(bench_libr1v, prepared, name, tokens, *question),
                "python": partial(bench_python, prepared, name, tokens, *question),
            },
            repeats,
            "first_token_ms",
        )
        for name, tokens in NEW_TOKENS.items()
    }


def decoding(prepared: Prepared, repeats: int) -> dict[str, Any]:
    """Answers to a text."""
    report = {}
    for name in VARIANTS:
        runner = open_runner(prepared.bundle(name))
        prompt = runner.tokenize(Request.ask(TEXT))
        by_genai = output_of_genai(prepared, name, prompt)
        ours = output_of(*run_commands(prepared, name, DECODED)["libr1v"], TEXT).strip()
        same = ours == runner.tokenizer.decode(by_genai).strip()
        del runner
        if name == "fp32" and not same:
            raise SystemExit(f"libr1v and onnxruntime-genai disagree in float32: {ours}, {by_genai}")
        contenders = {
            "libr1v": partial(bench_libr1v, prepared, name, DECODED, "--question", TEXT),
            "genai": partial(bench_genai, prepared, name, prompt),
        }
        report[name] = {"same_tokens": same, **compare(contenders, repeats, "first_token_ms")}
    return report


def output_of_genai(prepared: Prepared, name: str, prompt: list[int]) -> list[int]:
    """The tokens of its answer."""
    command = genai_command(prepared, name, prompt, DECODED, 1)
    out = subprocess.run(
        command, env=environment(), check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return list(map(int, out.stdout.splitlines()[1].split()[2:]))


def first_output(command: list[str]) -> dict[str, float]:
    """Milliseconds until a process writes anything."""
    started = time.perf_counter()
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        first = time.perf_counter() - started
        process.stdout.read()
    assert process.returncode == 0, command
    return {"first_token_ms": 1e3 * first}


def starts(prepared: Prepared, repeats: int) -> dict[str, Any]:
    """A process for one short answer: nano's about an image, the others' to a text."""
    report = {}
    for name in NEW_TOKENS:
        question = [*(("--image", str(IMAGE)) if name == "nano" else ()), QUESTION]
        commands = {peer: [*command, *question] for peer, command in run_commands(prepared, name, 2).items()}
        if name in VARIANTS:
            prompt = open_runner(prepared.bundle(name)).tokenize(Request.ask(QUESTION))
            commands["genai"] = genai_command(prepared, name, prompt, 2, 0)
        report[name] = compare(
            {peer: partial(first_output, command) for peer, command in commands.items()}, repeats, "first_token_ms"
        )
    return report


def resident_mb(pid: int, model: Path) -> dict[str, float]:
    """MB that are resident of a process: all; mapped files of the model; and other mapped files, which are code."""
    kib = {"all": 0, "model": 0, "code": 0}
    mapped = "all"
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", words[0]):
            file = words[5] if len(words) > 5 else ""
            mapped = "model" if str(model.resolve()) in file else "code" if file.startswith("/") else "all"
        elif words[0] == "Rss:":
            for kind in {"all", mapped}:
                kib[kind] += int(words[1])
    return {kind: each * 1024 / 1e6 for kind, each in kib.items()}


def memory_after(
    command: list[str], question: str | None, model: Path, weights_mb: float, cache_mb: float
) -> dict[str, float]:
    """MB of a process that has answered and waits."""
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        if question is not None:
            process.stdin.write(question + "\n")
            process.stdin.flush()
        _wait_for(process.stderr if question else process.stdout, CUT_OFF if question else "done")
        resident = resident_mb(process.pid, model)
        process.stdin.close()
    weights_mb += resident["model"]
    rest = resident["all"] - weights_mb - cache_mb
    counted = {"resident_mb": resident["all"], "weights_mb": weights_mb, "cache_mb": cache_mb, "rest_mb": rest}
    return {**counted, "code_mb": resident["code"]}


def _wait_for(lines: IO[str] | None, text: str) -> None:
    assert lines is not None
    if not any(text in line for line in lines):
        raise SystemExit(f"a peer ended before it said {text!r}")


def slot_bytes(bundle: Path) -> int:
    """Of the key-value cache in float32, for each token."""
    sizes = json.loads((bundle / "contract.json").read_text(encoding="utf-8"))["sizes"]
    return 2 * int(sizes["layers"]) * int(sizes["kv_heads"]) * int(sizes["head_dim"]) * 4


def memory(prepared: Prepared, repeats: int) -> dict[str, Any]:
    """The same questions as `starts`, but for the texts, which are `decoding`'s."""
    report = {}
    for name, tokens in NEW_TOKENS.items():
        bundle = prepared.bundle(name)
        runner = open_runner(bundle)
        image = name == "nano"
        graphs = ("decoder", "vision", "projector") if image else ("decoder",)
        weights_mb = sum((bundle / "graphs" / f"{graph}.data").stat().st_size for graph in graphs) / 1e6
        prompt = [] if image else runner.tokenize(Request.ask(TEXT))
        length = (
            bench_python(prepared, name, 2, "--image", IMAGE, "--question", QUESTION)["prompt_tokens"]
            if image
            else len(prompt)
        )
        cache_mb = (length + tokens) * slot_bytes(bundle) / 1e6
        count = partial(memory_after, weights_mb=weights_mb, cache_mb=cache_mb)
        commands = {
            peer: [*command, "--chat", *(("--image", str(IMAGE)) if image else ())]
            for peer, command in run_commands(prepared, name, tokens).items()
        }
        question = QUESTION if image else TEXT
        contenders = {peer: partial(count, command, question, bundle) for peer, command in commands.items()}
        if name in VARIANTS:
            answer = genai_command(prepared, name, prompt, tokens, 0)
            contenders["genai"] = partial(count, answer, None, prepared.genai(name))
        report[name] = interleaved(contenders, max(1, repeats // 2))
        rest = {
            peer: [round(each[quantity]["median"], 1) for quantity in ("rest_mb", "code_mb")]
            for peer, each in report[name].items()
        }
        print(name, "MB beyond weights and cache, and of them code:", json.dumps(rest), flush=True)
    return report


@click.command(help=__doc__)
@click.option("--work", "folder", type=click.Path(path_type=Path), default=Path("/tmp/libr1v"), show_default=True)
@click.option("--prepare", is_flag=True, help="Make what is measured, and measure nothing.")
@click.option("--only", default=",".join(PARTS), show_default=True, help="Parts, by commas; others stay.")
@click.option("--repeats", default=4, show_default=True)
def main(folder: Path, prepare: bool, only: str, repeats: int) -> None:
    prepared = Prepared(folder.resolve())
    if prepare:
        prepared.prepare()
        return
    measures = dict(zip(PARTS, (answers, decoding, starts, memory), strict=True))
    wanted = only.split(",")
    earlier = newest_results("libr1v") if set(wanted) != set(PARTS) else {}
    report = earlier | {"machine": machine(("onnxruntime",)), "threads": THREADS, "genai": GENAI}
    report["int4_inputs"] = VARIANTS["int4"].inputs
    for part in wanted:
        report[part] = measures[part](prepared, repeats)
        # Written after each part: a killed run keeps what it has.
        path = write_results("libr1v", report)
    print(path)


if __name__ == "__main__":
    main()
