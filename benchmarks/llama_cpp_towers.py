"""Towers of the published shapes in a real llama.cpp: are its image embeddings those of this package's reference?

    PYTHONPATH=. .venv/bin/python benchmarks/llama_cpp_towers.py --environment /tmp/llama --work /tmp/towers

Random weights. InternViT-6B's has its 3200 channels and 45 blocks, by which llama.cpp knows it, and a narrow MLP.
llama.cpp logs the first and the last 16 numbers of an image's first token; they are compared with the reference's.
Results: benchmarks/results/<date>-llama-cpp-towers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp_oracle import EXAMPLES, VERSION, make_environment
from measure import machine, write_results
from PIL import Image

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig
from r1v_export.processing.preprocess import pixel_values
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.targets.gguf.write.files import write_gguf

IMAGE = EXAMPLES / "02-shape.png"
"""One tile."""

TOWERS: dict[str, tuple[int, dict[str, Any]]] = {
    "r1v-nano's: RMSNorm, stored twice as wide": (4, {}),
    "InternViT-300M's: LayerNorm, biases": (
        4,
        {
            "vision_config.norm_type": "layer_norm",
            "vision_config.qk_normalization": False,
            "vision_config.qkv_bias": True,
        },
    ),
    "InternViT-6B's: RMSNorm, normalized queries and keys, 3200 channels, 45 blocks": (
        45,
        {
            "vision_config.hidden_size": 3200,
            "vision_config.num_attention_heads": 25,
            "vision_config.intermediate_size": 64,
        },
    ),
}
"""Name -> blocks, and what differs from the preset nano."""


def logged(python: Path, files: Path, work: Path) -> np.ndarray:
    """The 32 numbers that llama.cpp logs."""
    question = {"before": "<|im_start|>user\n", "after": "\nHi<|im_end|>\n", "image": str(IMAGE)}
    names = {"model": str(files / "model.gguf"), "mmproj": str(files / "mmproj.gguf")}
    job = names | {"max_tokens": 1, "verbosity": 5, "questions": [question]}
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    reader = Path(__file__).parent / "llama_cpp_reader.py"
    command = ["nice", python, reader, work / "job.json", work / "answers.json"]
    found = subprocess.run(
        command,
        env=environment | {"MTMD_DEBUG_EMBEDDINGS": "1"},
        capture_output=True,
        check=True,
        text=True,
        errors="replace",
    )
    text = found.stdout + found.stderr
    lines = [re.search(rf"Token 0 \({end} 16 values\):(.*)", text) for end in ("first", "last")]
    return np.array([float(number) for line in lines if line for number in re.findall(r"I (-?\d+\.\d+)", line[1])])


def compared(name: str, python: Path, work: Path) -> dict[str, Any]:
    """One tower's result."""
    blocks, overrides = TOWERS[name]
    folder = work / name.split(":")[0].replace("'", "")
    files = folder / "files"
    if not files.exists():
        synthesize(folder / "model", preset="nano", overrides=overrides, vision_layers=blocks, language_layers=1)
        files.mkdir()
        checkpoint = Checkpoint.open(folder / "model")
        write_gguf(checkpoint, None, BuildConfig(precision="fp16"), files)
    written = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint = Checkpoint.open(folder / "model")
    pixels, _ = pixel_values([Image.open(IMAGE)], checkpoint.spec.tiling)
    theirs = logged(python, files, work)
    reference = ReferenceEngine(load(checkpoint))
    first = reference.projector(reference.vision(pixels))[0, 0]
    ours = np.concatenate([first[:16], first[-16:]])
    return {
        "tower": name,
        "version": f"xllamacpp {VERSION}",
        "values": len(theirs),
        "relative_error": float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours)),
        "mmproj_bytes": (files / "mmproj.gguf").stat().st_size,
        "peak_mb_after_writing": round(written / 1e3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, required=True, help="folder of llama.cpp's Python environment")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and files, 8 GB")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    python = make_environment(arguments.environment)
    rows = []
    for name in TOWERS:
        rows.append(compared(name, python, arguments.work))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(write_results("llama-cpp-towers", {"machine": machine(("torch", "gguf")), "towers": rows}))


if __name__ == "__main__":
    main()
