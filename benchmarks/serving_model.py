"""A random model of Qwen2-0.5B's language model with a small vision tower, in every form that the servers read.

The tower is r1v-nano's: 112-pixel tiles of 16 tokens. Embeddings and head, which are tied, are zero but for the ASCII
letters and digits: so every greedy token is one of those, which every server sends at once as one character, and no
answer ends before its limit.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from r1v_export.quantization.recipe import load

SETTINGS = {
    **{f"vision_config.{name}": value for name, value in {"hidden_size": 256, "num_attention_heads": 4}.items()},
    **{f"vision_config.{name}": value for name, value in {"intermediate_size": 768, "image_size": 112}.items()},
    "vision_config.initializer_factor": 0.1,  # vLLM reads it
    "force_image_size": 112,
    "max_dynamic_patch": 4,
    "llm_config.rope_scaling": "null",
    "llm_config.tie_word_embeddings": "true",
    "tie_word_embeddings": "true",
}


@dataclass(frozen=True)
class Model:
    """Folders of the model.

    Args:
        work: where they are.
        full_vocabulary: whether there is a token for each id below the added ones, as in published tokenizers: 151,643
            of them. Else there are the 256 bytes.
    """

    work: Path
    full_vocabulary: bool = False

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint"

    def bundle(self, name: str) -> Path:
        """`fp32`, `int4` and `int4-exact`, whose inputs are not rounded to 8 bits, for ONNX Runtime; `gguf16`,
        bfloat16, and `gguf4`, Q4_0, for llama.cpp.
        """
        return self.work / name

    def prepare(self, *names: str) -> None:
        """Make what is not there; killed, it resumes.

        Args:
            names: of the bundles; all if there are none.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        if not (self.checkpoint / "config.json").exists():
            changes = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
            _r1v_export("synth", self.checkpoint, "--preset", "internvl3-1b", "--vision-layers", "4", *changes)
        if self.full_vocabulary:
            fill_vocabulary(self.checkpoint / "tokenizer.json")
        speak_letters(self.checkpoint)
        recipe = self.work / "int4-32.yaml"  # llama.cpp's groups
        recipe.write_text(load("int4-rtn").to_yaml().replace("group_size: 128", "group_size: 32"), encoding="utf-8")
        int4 = (self.checkpoint, "--precision", "int4", "--recipe", "int4-rtn")
        gguf = ("--target", "gguf")
        builds: dict[str, tuple[str | Path, ...]] = {
            "fp32": (self.checkpoint, "--precision", "fp32"),
            "int4": int4,
            "int4-exact": (*int4, "--int4-inputs", "exact"),
            "gguf16": (self.checkpoint, *gguf, "--precision", "bf16"),
            "gguf4": (self.checkpoint, *gguf, "--precision", "int4", "--recipe", recipe),
        }
        for name, options in builds.items():
            if (not names or name in names) and not (self.bundle(name) / "manifest.json").exists():
                _r1v_export("build", *options, "-o", self.bundle(name), "--no-parity")


def _r1v_export(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "r1v_export.cli.main", *words], check=True, stdout=sys.stderr)


def fill_vocabulary(file: Path) -> None:
    """Random tokens of up to 14 letters, each merged of two others, for all ids of a tokenizer.json that have none."""
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    parts, rng = [token for token in vocabulary if len(token) == 1 and token.isalpha()], random.Random(0)
    first_added = min(token["id"] for token in content["added_tokens"])
    free = sorted({*range(first_added)} - {*vocabulary.values()})
    for id_ in free:
        pair = rng.choices(parts, k=2)
        while len(token := "".join(pair)) > 14 or token in vocabulary:
            pair = rng.choices(parts, k=2)
        vocabulary[token] = id_
        parts.append(token)
        merges.append(pair)
    if free:
        whole = file.with_suffix(".new")
        whole.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
        whole.replace(file)


def speak_letters(checkpoint: Path, table: str = "language_model.model.embed_tokens.weight") -> None:
    """Zero the rows of the head, in place, but for those of letters and digits.

    Args:
        table: its name; that of the embeddings where both are one tensor.
    """
    weights = checkpoint / "model.safetensors"
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        tensor = json.loads(file.read(length))[table]
    begin, shape = 8 + length + tensor["data_offsets"][0], tuple(tensor["shape"])
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    spoken = [id_ for token, id_ in vocabulary.items() if len(token) == 1 and token.isascii() and token.isalnum()]
    rows = np.memmap(weights, np.uint16, "r+", begin, shape)
    silent = np.ones(len(rows), dtype=bool)
    silent[spoken] = False
    rows[silent] = 0
    rows.flush()
