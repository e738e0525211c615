"""The tables of docs/benchmarks_method.md, which tables.py writes: what is no comparison of whole systems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from page_tables import Results, markdown, newest


def sourced(results: Results, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, and where it is from."""
    return f"{markdown(heads, rows)}\n\nFrom {results.conditions}."


def scientific(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-")


def with_digits(value: float, digits: int = 2) -> str:
    return f"{value:,.{digits}f}"


def open_slice(folder: Path) -> str:
    """Opening a decoder layer of the 38B's width over one read of its bytes."""
    results = newest("start-up", "start_up.py", folder, "slice")
    rows = [[case, with_digits(found["open_over_read"], 1)] for case, found in results["slice"].items()]
    return sourced(results, ["what an earlier process prepared; the files", "opening / one read"], rows)


def preprocess(folder: Path) -> str:
    """Time of Python over that of libr1v, from an image's file to its tiles."""
    results = newest("preprocess-cpp", "preprocess_cpp.py", folder)
    rows = []
    for image in (name for name in results.content if name != "machine"):
        one, two = (results[image]["python_over"][name] for name in ("cpp_1_thread", "cpp_2_threads"))
        values = (one["processor_ms"], two["decode_ms"], two["tiles_ms"], two["total_ms"])
        rows.append([image.replace(".", ", "), *(with_digits(value, 1) for value in values)])
    heads = ["image", "processor time, 1 thread", "decoding, 2 threads", "tiles, 2 threads", "both, 2 threads"]
    return sourced(results, heads, rows)


def libr1v(folder: Path) -> str:
    """libr1v against Python and genai; above 1 it is the faster one."""
    results = newest("libr1v", "libr1v.py", folder)
    models = ("nano", "fp32", "int4")
    rows = []
    for label, part, name in (
        ("Python: time to the first token of a question about an image", "answer", "libr1v / python, first_token_ms"),
        ("Python: tokens/s after it", "answer", "libr1v / python, tokens_per_s"),
        ("genai: time to its first token of a prompt of text", "decode", "libr1v / genai, first_token_ms"),
        ("genai: tokens/s after it", "decode", "libr1v / genai, tokens_per_s"),
        ("Python: from the start of the process to the first token", "start", "libr1v / python, first_token_ms"),
        ("genai: the same", "start", "libr1v / genai, first_token_ms"),
    ):
        values = [results[part].get(model, {}).get("libr1v_ahead", {}).get(name) for model in models]
        rows.append([label, *("–" if value is None else with_digits(value) for value in values)])
    for system in ("libr1v", "python", "genai"):
        sizes = [results["memory"][model].get(system) for model in models]
        cells = ["–" if size is None else with_digits(size["rest_mb"]["median"], 0) for size in sizes]
        rows.append([f"MB beyond weights and cache after an answer: {system}", *cells])
    inputs = results.content.get("int4_inputs", "exact")
    return sourced(results, ["libr1v against", "nano, float32", "0.5B, float32", f"0.5B, int4, {inputs} inputs"], rows)


def footprint(folder: Path) -> str:
    """Before and after answering was freed from the compiler."""
    results = newest("runtime-footprint", "runtime_footprint.py", folder)
    sizes, ratios = results["site_packages_mb"], results["ratios"]
    rows = [["site-packages, full / runtime", "1", with_digits(sizes["full"]["all"] / sizes["runtime"]["all"])]]
    for label, quantity in (
        ("`r1v-export run` until the first token", "first_token_ms"),
        ("peak memory of the answering process", "peak_rss_mb"),
        ("`from r1v_export import open_runner`", "import_open_runner_ms"),
        ("`import r1v_export`", "import_ms"),
        ("`r1v-export --help`", "help_ms"),
        ("an interpreter that does nothing: what the load alone makes of a ratio", "interpreter_ms"),
    ):
        rows.append([label, *(with_digits(ratios[f"before / {now}, {quantity}"]) for now in ("full", "runtime"))])
    return sourced(results, ["", "before / now, in the full environment", "before / now, in the runtime's"], rows)


def build_memory(folder: Path) -> str:
    """Peak memory of fp16 builds by depth."""
    results = newest("build-memory", "build_memory.py", folder)
    rows = [[str(r["layers"]), with_digits(r["peak_rss_gb"]), with_digits(r["bundle_gb"])] for r in results["results"]]
    return sourced(results, ["ViT blocks and decoder layers, each", "peak memory, GB", "bundle, GB"], rows)


def build_bytes(folder: Path) -> str:
    """Bytes and wall time of int4-rtn builds by depth."""
    results = newest("build-bytes", "build_bytes.py", folder)
    rows = [
        [
            str(row["layers"]),
            with_digits(row["bundle_gb"], 1),
            with_digits(row["written_over_bundle"], 3),
            with_digits(row["read_over_checkpoint"], 3),
            with_digits(row["peak_anonymous_gb"]),
            with_digits(row["wall_over_slowest_limit"]),
        ]
        for row in results["results"]
    ]
    heads = ["layers", "bundle, GB", "bytes written / bundle", "bytes read / checkpoint's on disk"]
    return sourced(results, [*heads, "peak of anonymous memory, GB", "wall / slowest limit"], rows)


def build_bytes_gptq(folder: Path) -> str:
    """Bytes of builds that calibrate, before activations were kept in memory and now; and by layout."""
    results = newest("build-bytes-gptq", "build_bytes.py", folder)
    before = {tuple(run["targets"]): run["results"][0] for run in results["before"]}
    rows = [
        [
            ", ".join(run["targets"]),
            with_digits(run["results"][0]["bundle_gb"]),
            with_digits(before[tuple(run["targets"])]["written_over_bundle"], 3),
            with_digits(run["results"][0]["written_over_bundle"], 3),
        ]
        for run in results["after"]
    ]
    layouts = newest("build-bytes-gptq-layouts", "build_bytes.py", folder)
    for run in layouts["results"]:
        (found,) = run["results"]
        name = f"{', '.join(run['targets'])}: 2 blocks and layers, 2 samples"
        rows.append([name, with_digits(found["bundle_gb"]), "–", with_digits(found["written_over_bundle"], 3)])
    heads = ["targets", "bundle, GB", "written / bundle, activations in files", "written / bundle, now"]
    runs = [*results["after"], *layouts["results"]]
    loads = [run["machine"]["load_average_before"] for run in runs]
    files = " and ".join(f"[{r.path.stem}](../benchmarks/results/{r.path.name})" for r in (results, layouts))
    return (
        f"{markdown(heads, rows)}\n\nFrom `build_bytes.py`, {files}, load {min(loads):.1f} to {max(loads):.1f} before."
    )


def lost(folder: Path) -> str:
    """What a build wrote in addition to an undisturbed one, in the mean for each disturbance."""
    rows, sources = [], []
    for what, width in (("lost-true-width", "the 38B's width"), ("lost", "InternVL3-1B's width")):
        results = newest(what, "lost.py", folder)
        sources.append(f"From {results.conditions}.")
        for recipe, found in results["results"].items():
            repeated = [_repeated(found[kind]) for kind in ("killed", "full_disk")]
            disturbed = [*repeated, with_digits(found["sigterm_and_second_build"]["repeated_mb_each"], 0)]
            undisturbed = with_digits(found["undisturbed_written_mb"], 0)
            rows.append([f"`{recipe}`, {width}", str(found["files"]), undisturbed, *disturbed])
    heads = ["recipe", "files", "written undisturbed, MB", "kills: repeated, MB", "full disks", "SIGTERM"]
    return markdown(heads, rows) + "\n\n" + "\n".join(sources)


def _repeated(runs: Sequence[Mapping[str, Any]]) -> str:
    """The mean over all disturbances of several runs, and how many there were."""
    count = sum(run["disturbances"] for run in runs)
    each = sum(run["disturbances"] * run["repeated_mb_each"] for run in runs) / count
    return f"{with_digits(each, 0)} ({count})"


def speculation(folder: Path) -> str:
    """Speed with drafts over without."""
    results = newest("speculation", "speculation.py", folder)
    rows = []
    for name, label in (
        ("answers", "r1v-nano, answers to held-out questions"),
        ("long", "r1v-nano, 400 tokens that repeat"),
        ("loop", "Qwen2-0.5B's shape, random weights, greedy: a loop"),
        ("letters", "the same, letters drawn at random: nothing repeats"),
    ):
        cells = []
        for precision in ("fp32", "int4"):
            found = results["results"][precision][name]
            right = (
                f"{100 * found['accepted_tokens'] / found['draft_tokens']:.0f} %"
                if found["draft_tokens"]
                else "no drafts"
            )
            cells.append(f"{found['speed_ratio']:.2f}, {found['tokens_per_step']:.2f}, {right}")
        rows.append([label, *cells])
    return sourced(results, ["", "float32: speed, tokens a step, drafts that were right", "int4"], rows)


def accuracy(folder: Path) -> str:
    """What each way of quantizing costs r1v-nano."""
    results = newest("quantization-accuracy", "quantization_accuracy.py", folder)
    rows = []
    for recipe, found in results["results"].items():
        kl = [scientific(found[key]) if found[key] else "" for key in ("mean_kl", "p99_kl")]
        top1 = f"{100 * found['top1']:.2f} %" if found["mean_kl"] else ""
        share = f"{found['right']} ({100 * found['right'] / results['questions']:.1f} %)"
        rows.append([f"`{recipe}`", share, *kl, top1, with_digits(found["graphs_mb"], 1)])
    heads = [f"right of {results['questions']}", "mean KL", "99th percentile", "top-1", "graphs, MB"]
    return sourced(results, ["recipe or precision", *heads], rows)


def quantizers(folder: Path) -> str:
    """KL of the language model against other quantizers, the lowest in bold."""
    results = newest("quantization-peers", "quantization_peers.py", folder)
    best = {
        kind: min(found["mean_kl"] for name, found in results["results"].items() if name.startswith(kind))
        for kind in ("fp8", "int4")
    }
    rows = []
    for name, found in results["results"].items():
        mark = "**" if found["mean_kl"] == best[name.partition(":")[0]] else ""
        rows.append([name, f"{mark}{scientific(found['mean_kl'])}{mark}", scientific(found["p99_kl"])])
    return sourced(results, ["", "mean KL", "99th percentile"], rows)


def calibration_memory(folder: Path) -> str:
    """Peak memory of calibrating at full width by depth."""
    results = newest("calibration-memory-fp8", "calibration_memory.py", folder)
    rows = [[str(row["layers"]), with_digits(row["peak_rss_gb"])] for row in results["results"]]
    return sourced(results, ["ViT blocks and decoder layers, each", "peak memory, GB"], rows)


def throughput(folder: Path) -> str:
    """Millions of parameters per CPU second of quantizing a linear, against an earlier commit, and the errors."""
    rows, results = [], newest("awq-gptq-throughput", "quantize_throughput.py", folder)
    for name, found in results["results"]["o_proj"].items():
        if name == "linears" or name.endswith(" before"):
            continue
        before = results["results"]["o_proj"][f"{name.removesuffix(' bfloat16')} before"]
        speeds = [each["million_parameters_per_second"]["median"] for each in (before, found)]
        errors = [f"{each['error_percent']['median']:.5f} %" for each in (before, found)]
        cells = [*(with_digits(speed, 1) for speed in speeds), with_digits(speeds[1] / speeds[0], 1), *errors]
        rows.append([name.replace("bfloat16", "products in bfloat16"), *cells])
    heads = ["", "before", "now", "now / before", "error before", "error now"]
    return markdown(heads, rows) + f"\n\nFrom {results.conditions}; before is {results['before']}."


def rounding(folder: Path) -> str:
    """Rounding to nearest by rows in a core's cache over the same formulas on the whole weight."""
    results = newest("quantize-throughput", "quantize_throughput.py", folder)
    found = results["results"]["o_proj"]
    speed = {name: each["million_parameters_per_second"]["median"] for name, each in found.items() if name != "shape"}
    kinds = [name for name in speed if not name.endswith("at once")]
    rows = [[kind, with_digits(speed[kind] / speed[f"{kind} at once"], 1)] for kind in kinds]
    return sourced(results, ["", "by rows / at once"], rows)


def exports(folder: Path) -> str:
    """modelopt's times over ours, memory and bytes, by format and depth."""
    results = newest("checkpoint-export", "checkpoint_export.py", folder)
    depths = sorted({row["layers"] for row in results["results"]})
    by_case = {(row["format"], row["layers"]): row for row in results["results"]}
    formats = list(dict.fromkeys(row["format"] for row in results["results"]))
    rows = []
    for layout in ("tensorrt-llm", "hf-unified"):
        for name in formats:
            each = [by_case[name, depth] for depth in depths]
            if layout in each[0]["ours"]:
                rows.append([f"{layout}, {name}", *_export_cells(each, layout)])
    heads = ["export alone", "calibration and export", "peak memory, GB: ours", "modelopt", "bytes per weight"]
    title = f"{' / '.join(map(str, depths))} layers"
    return sourced(results, [title, *heads], rows)


def _export_cells(rows: Sequence[Mapping[str, Any]], layout: str) -> list[str]:
    alone, whole, ours_gb, modelopt_gb, size = [], [], [], [], []
    for row in rows:
        ours, peer = row["ours"], row["modelopt"][layout]
        seconds = ours[layout]["seconds"][layout]
        alone.append(f"{peer['seconds']['export'] / seconds:.1f}")
        calibration = ours.get("calibrate")
        if calibration:
            taken = peer["seconds"]["calibrate"] + peer["seconds"]["export"]
            whole.append(f"{taken / (calibration['seconds']['calibrate'] + seconds):.1f}")
        peaks = [part["peak_rss_gb"] for part in (ours[layout], calibration) if part]
        ours_gb.append(f"{max(peaks):.1f}")
        modelopt_gb.append(f"{peer['peak_rss_gb']:.1f}")
        size.append(f"{ours[layout]['bytes_per_weight']:.2f}")
    return [" / ".join(cells) for cells in (alone, whole, ours_gb, modelopt_gb, size)]


def calibration_layer(folder: Path) -> str:
    """CPU seconds of one decoder layer of the 38B's width, parts and whole, over modelopt's."""
    results = newest("calibration-layer", "by hand", folder)
    peer, rows = median(results["results"]["modelopt"]["calibrate"]), []
    for name in ("before", "now"):
        found = results["results"][name]
        parts = [median(found[part]) for part in ("materialize", "run", "quantize")]
        whole = median(sum(turn) for turn in zip(*(found[p] for p in ("materialize", "run", "quantize")), strict=True))
        rows.append([name, *(with_digits(part / peer) for part in parts), with_digits(peer / whole)])
    heads = ["of modelopt's CPU time for the layer", "loading weights", "forward pass and statistics", "scales"]
    machine = results["machine"]
    source = f"[{results.path.stem}](../benchmarks/results/{results.path.name})"
    text = markdown([*heads, "modelopt's / ours, whole"], rows)
    return (
        f"{text}\n\nFrom {source}, measured by hand, {machine['physical_cores']} cores, load {machine['load_average']}."
    )


def calibration_peer(folder: Path) -> str:
    """The whole of calibrate against modelopt's quantize of a model in memory."""
    results = newest("calibration-peer", "calibration_peer.py", folder)
    rows = [
        [
            str(row["layers"]),
            with_digits(row["modelopt_over_ours"], 1),
            with_digits(min(row["modelopt"]["cpu_seconds"]["all"]) / min(row["ours"]["cpu_seconds"]["all"]), 1),
            *(with_digits(row[name]["peak_rss_gb"]["median"]) for name in ("ours", "modelopt")),
        ]
        for row in results["results"]
    ]
    heads = ["decoder layers", "modelopt / ours, CPU time", "the same, by each one's least turn"]
    return sourced(results, [*heads, "peak memory, GB: ours", "modelopt"], rows)


def nano_serving(folder: Path) -> str:
    """serve against one request at a time, and Triton against serve, on r1v-nano."""
    results = newest("serving", "serving.py as of 52c485b", folder)
    by_case = {(row["bundle"], row["server"], row["clients"]): row for row in results["rows"]}
    rows = []
    for clients in sorted({row["clients"] for row in results["rows"]}):
        cells = []
        for server, other, quantity in (
            ("serve", "one at a time", "tokens_per_s"),
            ("serve", "one at a time", "first_token_ms_p50"),
            ("triton", "serve", "tokens_per_s"),
        ):
            values = [
                by_case[b, server, clients][quantity] / by_case[b, other, clients][quantity] for b in ("fp32", "int4")
            ]
            cells.append(", ".join(map(with_digits, values)))
        rows.append([str(clients), *cells])
    heads = ["`serve` / one at a time, tokens/s", "the same, time to the first token", "Triton / `serve`, tokens/s"]
    return sourced(results, ["clients", *(f"{head}: float32, int4" for head in heads)], rows)


DETAILS: Mapping[str, Callable[[Path], str]] = {
    "slice": open_slice,
    "preprocess": preprocess,
    "libr1v": libr1v,
    "footprint": footprint,
    "build-memory": build_memory,
    "build-bytes": build_bytes,
    "build-bytes-gptq": build_bytes_gptq,
    "lost": lost,
    "speculation": speculation,
    "accuracy": accuracy,
    "quantizers": quantizers,
    "calibration-memory": calibration_memory,
    "throughput": throughput,
    "rounding": rounding,
    "exports": exports,
    "calibration-layer": calibration_layer,
    "calibration-peer": calibration_peer,
    "serving": nano_serving,
}
"""The tables by the name of their place."""
