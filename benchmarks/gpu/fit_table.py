"""Which engines of the 38B fit which GPUs: the table of docs/38b.md, from the functions of `inspect --roofline`.

    PYTHONPATH=. .venv/bin/python benchmarks/gpu/fit_table.py           prints it
    PYTHONPATH=. .venv/bin/python benchmarks/gpu/fit_table.py --write   puts it into docs/38b.md

A cell is the largest number of requests of 8192 tokens (a prompt of 4096 with an image of 13 tiles, and an answer as
long) and, of a single one, the longest context.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.model_spec import ModelSpec
from r1v_export.parallel import Parallel
from r1v_export.quantization.recipe import load, resolve
from r1v_export.roofline.gpu_fit import GPU_SIZES_GB, fit, gpu_memory, requests
from r1v_export.roofline.gpu_model import GpuModel

DOCUMENT = Path(__file__).parents[2] / "docs/38b.md"
BEGIN = "<!-- written by benchmarks/gpu/fit_table.py -->"
END = "<!-- end -->"
PRESET = "r1v3-38b"
GPUS = (1, 2, 4, 8)
PROMPT, ANSWER = 4096, 4096
ENGINES = {
    "fp16, bf16": None,
    "fp8 (`fp8`, `fp8-tensor`, `fp8-rowwise`)": "fp8-tensor",
    "int8 (`int8-smoothquant`)": "int8-smoothquant",
    "int4 weights (`int4-gptq`, `int4-awq`, `int4-rtn`)": "int4-awq",
    "int4 weights, fp8 inputs (`w4a8`)": "w4a8",
}
"""Row -> recipe; None keeps 16 bits."""


def spec_of(preset: str) -> ModelSpec:
    """A preset's model, read from a checkpoint of holes."""
    with tempfile.TemporaryDirectory() as folder:
        return Checkpoint.open(synthesize(Path(folder), preset=preset, weights="empty")).spec


def table(spec: ModelSpec) -> str:
    """The table in Markdown."""
    heads = [f"{size} GB" for size in GPU_SIZES_GB]
    lines = [
        "| engine | GPUs | weights on each, GB | " + " | ".join(heads) + " |",
        "|---|---" + "|---" * (1 + len(heads)) + "|",
    ]
    for name, recipe in ENGINES.items():
        schemes = resolve(load(recipe), spec) if recipe else {}
        for gpus in GPUS:
            model = GpuModel(spec, "bfloat16", schemes, parallel=Parallel(gpus))
            model.check()
            memory = gpu_memory(model, requests(spec, PROMPT, ANSWER))
            weights_gb = (memory.vision_weight_bytes + memory.language_weight_bytes) / 1e9
            cells = [_cell(model, size) for size in GPU_SIZES_GB]
            lines.append(f"| {name if gpus == GPUS[0] else ''} | {gpus} | {weights_gb:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(model: GpuModel, memory_gb: float) -> str:
    asked = requests(model.spec, PROMPT, ANSWER)
    batch = fit(model, asked, memory_gb).largest_batch
    context = fit(model, asked, memory_gb).largest_context
    if not context:
        return "–"
    return f"{batch or '–'}, {context:,}"


def written(document: str, content: str) -> str:
    """The document with the table in its place."""
    before, rest = document.split(BEGIN)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    content = table(spec_of(PRESET))
    if parser.parse_args().write:
        DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8"), content), encoding="utf-8")
    else:
        print(content)


if __name__ == "__main__":
    main()
