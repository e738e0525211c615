"""Writes the tables of docs/benchmarks.md from the newest files in benchmarks/results, one for each question, those of
docs/benchmarks_avx2.md from its folder avx2, and those of docs/benchmarks_method.md.

    python benchmarks/tables.py           # after a measurement
    python benchmarks/tables.py --check   # writes nothing; exit code 1 where a page shows something else; a test

A situation that is measured in several files (a number of tiles, a length) is taken from the newest that has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
from measure import RESULTS
from page_tables import DOCS, Column, Results, comparison, filled, newest, newest_by_key
from tables_detail import DETAILS

INT4, INT8, FLOAT32 = "ours, int4", "ours, int8", "ours, float32"
BF16_TARGET = "ours, int4, `--target openvino`"
EXACT_IMAGES = "ours, int4, `--vision-target onnxruntime`"
OWN_DECODER = "ours, int4, `--decoder-target onnxruntime`"
EXACT = "ours, int4, `--int4-inputs exact`"
EXACT_TARGET = "ours, int4, exact inputs, `--target openvino` and `matmul: float32`"
HEADED = "ours, int4, head in 4 bits"
LIBR1V, LIBR1V_FLOAT32 = "ours in C++ (libr1v), int4", "ours in C++ (libr1v), float32"
INT8_CACHE = "ours, int4, INT8 cache"
LIBR1V_EXACT = "ours in C++ (libr1v), int4, exact inputs"
VINO_BF16, VINO_FLOAT32 = "ours, float32, `--target openvino`", "ours, the same with `matmul: float32`"
VINO_FLOAT32_TARGET = "ours, float32, `--target openvino` and `matmul: float32`"
EXACT_TOWER = "ours, float32, `--vision-target onnxruntime`"
OWN_INT8_TOWER = "ours, int4, `--vision-target onnxruntime-int8`"
GENAI, GENAI_EXACT = "onnxruntime-genai, int4", "onnxruntime-genai, int4, exact inputs"
GENAI_FLOAT32, GENAI_HEADED = "onnxruntime-genai, float32", "onnxruntime-genai, int4, head in 4 bits"
VINO_GENAI, LLAMA = "OpenVINO GenAI, Q4_0", "llama.cpp, Q4_0"
LLAMA_FLOAT32, LLAMA_BF16 = "llama.cpp, float32", "llama.cpp, bfloat16"
VLLM = "vLLM, bfloat16"
TORCH, TORCH_COMPILED = "PyTorch, float32", "torch.compile, float32"
TORCH_BF16, TORCH_COMPILED_BF16 = "PyTorch, bfloat16", "torch.compile, bfloat16"
TRANSFORMERS_BF16, TRANSFORMERS = "transformers, bfloat16", "transformers, float32"

SERVERS = {
    "serve int4": INT4,
    "one at a time int4": "ours, int4, one at a time",
    "triton int4": "ours, int4, Triton",
    "serve int4, exact inputs": EXACT,
    "serve fp32": FLOAT32,
    "one at a time fp32": "ours, float32, one at a time",
    "triton fp32": "ours, float32, Triton",
    "vLLM bf16": VLLM,
    "llama.cpp Q4_0": LLAMA,
    "llama.cpp bf16": LLAMA_BF16,
}
EARLIER_SERVERS = SERVERS | {
    "serve int4, int8 inputs": INT4,
    "serve int4": EXACT,
    "one at a time int4": "ours, int4, exact inputs, one at a time",
    "triton int4": "ours, int4, exact inputs, Triton",
}
"""In files from before inputs in 8 bits became the default."""
SYSTEMS = [
    *(
        INT4,
        INT8_CACHE,
        OWN_DECODER,
        OWN_INT8_TOWER,
        EXACT_IMAGES,
        BF16_TARGET,
        HEADED,
        EXACT,
        EXACT_TARGET,
        LIBR1V,
        LIBR1V_EXACT,
    ),
    *(names[f"{way} int4"] for way in ("one at a time", "triton") for names in (SERVERS, EARLIER_SERVERS)),
    *(
        INT8,
        FLOAT32,
        EXACT_TOWER,
        VINO_BF16,
        VINO_FLOAT32,
        VINO_FLOAT32_TARGET,
        LIBR1V_FLOAT32,
        SERVERS["one at a time fp32"],
        SERVERS["triton fp32"],
    ),
    *(VINO_GENAI, GENAI, GENAI_HEADED, GENAI_EXACT, GENAI_FLOAT32, LLAMA, LLAMA_BF16, LLAMA_FLOAT32, VLLM),
    *(TRANSFORMERS_BF16, TRANSFORMERS, TORCH, TORCH_COMPILED, TORCH_BF16, TORCH_COMPILED_BF16),
]
"""The order of rows in every table."""
WHOLE = {
    "ours int4": INT4,
    "ours int4, openvino": BF16_TARGET,
    "ours int4, prompts by onnxruntime": OWN_DECODER,  # until 2026-11-29
    "ours int4, decoded by onnxruntime": OWN_DECODER,
    "ours int4, images by onnxruntime": EXACT_IMAGES,
    "ours int8": INT8,
    "ours float32": FLOAT32,
    # Of files from before OpenVINO encoded images by default:
    "ours int4, onnxruntime, images by openvino": INT4,
    "ours int4, onnxruntime": EXACT_IMAGES,
    "ours float32, onnxruntime": FLOAT32,
    "OpenVINO GenAI Q4_0": VINO_GENAI,
    "llama.cpp Q4_0": LLAMA,
    "vLLM bfloat16": VLLM,
    "transformers bfloat16": TRANSFORMERS_BF16,
    "transformers float32": TRANSFORMERS,
}
LONG = {
    "r1v-export int8": INT4,
    "r1v-export int8 cache": INT8_CACHE,
    "r1v-export exact": EXACT,
    "r1v-export": FLOAT32,
    "r1v-export openvino int8": BF16_TARGET,
    "r1v-export openvino exact": EXACT_TARGET,
    "r1v-export openvino": VINO_FLOAT32,
    "genai int8": GENAI,
    "genai exact": GENAI_EXACT,
    "genai": GENAI_FLOAT32,
    "llama.cpp Q4_0": LLAMA,
    "llama.cpp F32": LLAMA_FLOAT32,
}
TOWER = {
    "openvino int8": INT4,  # these two: the defaults where the processor has bfloat16 products
    "openvino bfloat16": FLOAT32,
    "onnxruntime float32": EXACT_TOWER,
    "onnxruntime int8": OWN_INT8_TOWER,
    "openvino float32": VINO_FLOAT32,
    "torch eager float32": TORCH,
    "torch.compile float32": TORCH_COMPILED,
    "torch eager bfloat16": TORCH_BF16,
    "torch.compile bfloat16": TORCH_COMPILED_BF16,
}
AVX2_TOWER = TOWER | {
    "onnxruntime int8": INT4,  # these two: the defaults without bfloat16 products
    "onnxruntime float32": FLOAT32,
    "openvino float32": VINO_FLOAT32_TARGET,
}
DECODER = {"onnxruntime float32": FLOAT32, "openvino bfloat16": VINO_BF16, "openvino float32": VINO_FLOAT32}
START = {
    "r1v-export": INT4,
    "r1v-export headed": HEADED,
    "genai": GENAI,
    "genai headed": GENAI_HEADED,
    "llama.cpp Q4_0": LLAMA,
}

_HEADED = "A head in 4 bits; ours with one is in the row of that name."
Causes = Mapping[str, Mapping[str, str]]
CAUSES: dict[str, dict[str, str]] = {
    "memory": {
        **dict.fromkeys(
            (GENAI, GENAI_EXACT), "With AMX ours holds the weights of the layers twice, once more for prompts."
        ),
        GENAI_HEADED: _HEADED,
    },
    "start": {GENAI_HEADED: _HEADED},
}
"""Why a system is ahead of ours, by table and system."""
_SAME_KERNELS = (
    "Both run ONNX Runtime's kernels, which take the same time in both by its profiles, and readings of one system "
    "differ by up to 1.3 times."
)
_OTHER_READINGS = (
    "Prompts of 4,096 tokens and more are one reading each. Earlier ones of 16,384 gave it 1.02 and 1.03 in prefill, "
    "0.82 and 1.22 in decode; whether long prompts are slower in ours was not looked into."
)
AVX2_CAUSES: Causes = {
    "contexts": {GENAI: f"{_SAME_KERNELS} {_OTHER_READINGS}", GENAI_EXACT: _SAME_KERNELS},
    "memory": {
        GENAI_HEADED: "A head in 4 bits; ours has it in the row of that name, from before it was packed first.",
    },
}
"""Likewise on processors that have no AVX-512."""


def renamed(names: Mapping[str, str], values: Mapping[str, float | None]) -> dict[str, float]:
    """Values by the systems' names on the page; a system that is not known keeps its own."""
    return {names.get(name, name): value for name, value in values.items() if value is not None}


def tiles(count: str) -> str:
    return "1 tile" if count == "1" else f"{count} tiles"


def whole(folder: Path, title: str, value: Callable[[Any], float], is_size: bool = False) -> list[Column]:
    """A column for each number of tiles.

    Args:
        title: of which {} becomes the number of tiles.
        value: of a system's entry.
    """
    columns = []
    for count, results in newest_by_key("whole-answers*", "whole_answers.py", "tiles", folder).items():
        systems = results["tiles"][count]["systems"]
        values = renamed(WHOLE, {name: value(system) for name, system in systems.items()})
        turns = max(system["turns"] for system in systems.values())
        by_turn = {
            WHOLE.get(name, name): [value({**each, "readings": [each]}) for each in system["readings"]]
            for name, system in systems.items()
        }
        columns.append(Column(title.format(tiles(count)), results, values, INT4, turns, is_size, by_turn))
    return columns


def long(folder: Path, weights: str, title: str, quantity: str, is_size: bool = False) -> list[Column]:
    """A column for each length; none where these weights were not measured.

    Args:
        title: of which {} becomes the length.
    """
    what, columns, reference = f"long-contexts-{weights}", [], {"int4": INT4, "fp32": FLOAT32}[weights]
    if not [*folder.glob(f"*-{what}*.json")]:
        return []
    for tokens, results in newest_by_key(f"{what}*", "long_contexts.py", "lengths", folder).items():
        engines = results["lengths"][tokens]["engines"]
        scale = 1e9 if is_size else 1
        values = renamed(LONG, {name: engine[quantity] / scale for name, engine in engines.items()})
        by_turn = {
            LONG.get(name, name): [rate for each in engine["readings"] for rate in rates(int(tokens), each, quantity)]
            for name, engine in engines.items()
        }
        title_here = title.format(f"{int(tokens):,}")
        columns.append(Column(title_here, results, values, reference, results["turns"], is_size, by_turn))
    return columns


def rates(tokens: int, reading: Mapping[str, Any], quantity: str) -> list[float]:
    """What `long_contexts.py` makes medians of: prompt tokens/s, and tokens/s after the first of each round."""
    if quantity == "prefill_tokens_per_s":
        return [tokens / reading["prefill_s"]]
    if quantity == "decode_tokens_per_s":
        return [1 / step_s for step_s in reading.get("rounds_s", [median(reading["steps_s"])])]
    return []


AFTER_512 = {
    "int4-int8-inputs": ("text, 512 tokens, heads in 4 bits", INT4, GENAI),
    "fp32": ("text, 512 tokens, float32", FLOAT32, GENAI_FLOAT32),
}
"""Of weights: title, ours, genai."""


def after_512(folder: Path, quantity: str, variants: Iterable[str]) -> list[Column]:
    """Ours and genai behind 512 tokens of text, of some of `AFTER_512`."""
    columns = []
    for variant in variants:
        title, ours, peer = AFTER_512[variant]
        results = newest(f"decode-onnxruntime-{variant}", "decode_onnxruntime.py", folder)
        found = results["capacity"][min(results["capacity"], key=int)]
        names = {"r1v-export": ours, "onnxruntime-genai": peer}
        values = {label: found[name][quantity]["median"] for name, label in names.items()}
        by_turn = {label: found[name][quantity]["all"] for name, label in names.items()}
        columns.append(Column(title, results, values, ours, results["repeats"], by_turn=by_turn))
    return columns


def eight_layers(folder: Path, part: str) -> list[Column]:
    """ONNX Runtime and OpenVINO, 8 of the language model's 24 layers in float32."""
    results = newest("openvino-engine*", "openvino_engine.py", folder, "decoder")
    (found,) = results["decoder"]
    values = {label: found[part][name]["per_s"]["median"] for name, label in DECODER.items()}
    title = f"text, {found['prompt']} tokens, float32, {results['language_layers']} layers"
    return [Column(title, results, values, FLOAT32, results["repeats"])]


def decode_behind_images(folder: Path) -> list[Column]:
    """Tokens/s after the first token of a whole answer."""

    def speed(system: Any) -> float:
        return median((each["tokens"] - 1) / (each["last_s"] - each["first_s"]) for each in system["readings"])

    return whole(folder, "an image of {}", speed)


def decode(folder: Path) -> list[Column]:
    """Tokens/s after the first token."""
    texts = long(folder, "int4", "text, {} tokens, heads in 4 bits", "decode_tokens_per_s")[:2]
    float32 = after_512(folder, "decode_tokens_per_s", ["fp32"])
    return [*decode_behind_images(folder), *texts, *float32, *eight_layers(folder, "decode")]


def image(folder: Path, names: Mapping[str, str] = TOWER) -> list[Column]:
    """Tiles/s of the vision tower, of InternViT-300M's width and, where it was measured, of InternViT-6B's.

    Args:
        names: of systems in the files, to those on the page.
    """
    columns = []
    for what, title in (("openvino-engine*", "{}"), ("vision-6b*", "{}, 6B's width")):
        if not [*folder.glob(f"*-{what}.json")]:
            continue
        for count, results in newest_by_key(what, "openvino_engine.py", "vision", folder).items():
            found = results["vision"][count]
            there = {name: label for name, label in names.items() if name in found}
            values = {label: found[name]["per_s"]["median"] for name, label in there.items()}
            by_turn = {label: found[name]["per_s"]["all"] for name, label in there.items()}
            columns.append(
                Column(title.format(tiles(count)), results, values, INT4, results["repeats"], by_turn=by_turn)
            )
    return columns


def answer_about_images(folder: Path) -> list[Column]:
    """The inverse of the times to the first and to the last token of a whole answer."""
    first = whole(folder, "{}: first token", lambda system: 1 / system["first_s"])
    last = whole(folder, "{}: last token", lambda system: 1 / system["last_s"])
    return [column for pair in zip(first, last, strict=True) for column in pair]


def answer(folder: Path) -> list[Column]:
    """The inverse of the times to the first and to the last token."""
    text = long(folder, "int4", "text, {} tokens, heads in 4 bits", "prefill_tokens_per_s")[:1]
    float32 = after_512(folder, "prefill_tokens_per_s", ["fp32"])
    return [*answer_about_images(folder), *text, *float32, *eight_layers(folder, "prefill")]


def contexts(folder: Path) -> list[Column]:
    """Prompt tokens/s at every length, and tokens/s behind it."""
    columns = []
    for weights, suffix in (("int4", ""), ("fp32", ", float32")):
        prefill = long(folder, weights, f"{{}} tokens{suffix}: prefill", "prefill_tokens_per_s")
        after = long(folder, weights, f"{{}} tokens{suffix}: decode", "decode_tokens_per_s")
        columns += [column for pair in zip(prefill, after, strict=True) for column in pair]
    return columns


def users(folder: Path) -> list[Column]:
    """Tokens/s of all clients, and the inverse of the times that they wait."""
    results = newest("serving-peers", "serving.py", folder)
    rows = {name: {row["clients"]: row for row in found["rows"]} for name, found in results["servers"].items()}
    counts = sorted({count for each in rows.values() for count in each})

    def column(title: str, clients: int, value: Callable[[Any], float]) -> Column:
        there = {name: value(each[clients]) for name, each in rows.items() if clients in each}
        turns = max(len(each[clients]["tokens_per_s_all"]) for each in rows.values() if clients in each)
        return Column(title, results, renamed(server_names(results), there), INT4, turns)

    return [
        *(column(f"{count}: tokens/s", count, lambda row: row["tokens_per_s"]) for count in counts),
        *(column(f"{count}: first token", count, lambda row: 1 / row["first_token_ms_p50"]) for count in (1, 16)),
        column("16: between tokens, p95", 16, lambda row: 1 / row["inter_token_ms_p95"]),
    ]


def server_names(results: Results) -> Mapping[str, str]:
    return EARLIER_SERVERS if "serve int4, int8 inputs" in results["servers"] else SERVERS


def libr1v_cases(results: Results) -> list[tuple[str, str, dict[str, str]]]:
    """Weights, what a column's title says of them, and the names of libr1v, Python and genai."""
    is_exact = results.content.get("int4_inputs", "exact") == "exact"
    int4 = (LIBR1V_EXACT, EXACT, GENAI_EXACT) if is_exact else (LIBR1V, INT4, GENAI)
    keys = ("libr1v", "python", "genai")
    return [
        ("int4", "int4, exact inputs" if is_exact else "int4", dict(zip(keys, int4, strict=True))),
        ("fp32", "float32", dict(zip(keys, (LIBR1V_FLOAT32, FLOAT32, GENAI_FLOAT32), strict=True))),
    ]


def memory_of_run(folder: Path) -> Column:
    """The most that a process of `run` had resident, GB."""
    results = newest("start-up", "start_up.py", folder, "first_token")
    peaks = {name: found["peak_mb"] / 1e3 for name, found in results["first_token"]["medians"].items()}
    return Column("`run`, to its first token", results, renamed(START, peaks), INT4, results["turns"], True)


def memory_behind_images(folder: Path) -> list[Column]:
    """The same of processes that answer questions about images."""
    return whole(folder, "an image of {}", lambda system: system["peak_bytes"] / 1e9, is_size=True)


def memory(folder: Path) -> list[Column]:
    """The most that a process had resident, GB."""
    libr1v = newest("libr1v", "libr1v.py", folder)
    columns = memory_behind_images(folder)
    columns += long(folder, "int4", "{} tokens, heads in 4 bits", "peak_bytes", is_size=True)
    columns += long(folder, "fp32", "{} tokens, float32", "peak_bytes", is_size=True)
    columns.append(memory_of_run(folder))
    for weights, title, names in libr1v_cases(libr1v):
        found = libr1v["memory"][weights]
        values = {label: found[name]["resident_mb"]["median"] / 1e3 for name, label in names.items()}
        title = f"after an answer, {title}"
        columns.append(Column(title, libr1v, values, names["python"], len(found["libr1v"]["resident_mb"]["all"]), True))
    return columns


def start_of_run(folder: Path) -> list[Column]:
    """The inverse of times from the start of a process of `run` to its first token."""
    results = newest("start-up", "start_up.py", folder, "first_token")
    medians = results["first_token"]["medians"]
    return [
        Column(title, results, renamed(START, {n: 1 / m[quantity] for n, m in medians.items()}), INT4, results["turns"])
        for title, quantity in (("`run`: first token", "first_token_s"), ("`run`: processor time", "cpu_s"))
    ]


def start(folder: Path) -> list[Column]:
    """The inverse of times from the start of a process to its first token, or until it can be asked."""
    columns, libr1v = start_of_run(folder), newest("libr1v", "libr1v.py", folder)
    for weights, title, names in libr1v_cases(libr1v):
        found = libr1v["start"][weights]["results"]
        values = {label: 1 / found[name]["first_token_ms"]["median"] for name, label in names.items()}
        title = f"a process: first token, {title}"
        columns.append(Column(title, libr1v, values, names["python"], len(found["libr1v"]["first_token_ms"]["all"])))
    opened = [*newest_by_key("whole-answers*", "whole_answers.py", "tiles", folder).values()][-1]
    values = {name: 1 / seconds for name, seconds in opened["open_s"].items()}
    columns.append(Column("a model with images is open", opened, renamed(WHOLE, values), INT4, 1))
    servers = newest("serving-peers", "serving.py", folder)
    times = {name: 1 / found["seconds_to_start_and_warm_up"] for name, found in servers["servers"].items()}
    columns.append(Column("a server is warm", servers, renamed(server_names(servers), times), INT4, 1))
    return columns


QUESTIONS = {
    "decode": decode,
    "image": image,
    "answer": answer,
    "contexts": contexts,
    "users": users,
    "memory": memory,
    "start": start,
}
"""The tables of docs/benchmarks.md by the name of their place."""
AVX2 = "avx2"
"""The folder, below the results, of what was measured on processors that have no AVX-512."""
AVX2_QUESTIONS: Mapping[str, Callable[[Path], list[Column]]] = {
    "decode": lambda folder: [
        *decode_behind_images(folder),
        *after_512(folder, "decode_tokens_per_s", ["int4-int8-inputs"]),
    ],
    "image": partial(image, names=AVX2_TOWER),
    "answer": lambda folder: [
        *answer_about_images(folder),
        *after_512(folder, "prefill_tokens_per_s", ["int4-int8-inputs"]),
    ],
    "contexts": contexts,
    "memory": lambda folder: [*memory_behind_images(folder), memory_of_run(folder)],
    "start": start_of_run,
}
"""Those of docs/benchmarks_avx2.md."""


def pages(folder: Path = RESULTS) -> dict[Path, dict[str, str]]:
    """Every table as Markdown: page -> name of the place -> text."""

    def tables(questions: Mapping[str, Callable[[Path], list[Column]]], causes: Causes, of: Path) -> dict[str, str]:
        return {name: comparison(columns(of), SYSTEMS, causes.get(name, {})) for name, columns in questions.items()}

    return {
        DOCS / "benchmarks.md": tables(QUESTIONS, CAUSES, folder),
        DOCS / "benchmarks_avx2.md": tables(AVX2_QUESTIONS, AVX2_CAUSES, folder / AVX2),
        DOCS / "benchmarks_method.md": {name: table(folder) for name, table in DETAILS.items()},
    }


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 where a page shows something else.")
def main(check: bool) -> None:
    """Write the tables of the pages."""
    stale = []
    for page, tables in pages().items():
        text = page.read_text(encoding="utf-8")
        if (new := filled(text, tables)) != text:
            stale.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    click.echo(f"{'other than in benchmarks/results' if check else 'written'}: {', '.join(stale) or 'none'}")
    sys.exit(int(check and bool(stale)))


if __name__ == "__main__":
    main()
