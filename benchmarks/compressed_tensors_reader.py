"""The package compressed-tensors reads what `--target compressed-tensors` writes: are the weights it decompresses ours?

    PYTHONPATH=. .venv/bin/python benchmarks/compressed_tensors_reader.py --work /tmp/readers/oracle

Builds r1v-nano in every format where `--work` does not hold it yet (vllm_oracle.py makes the same bundles). The package
gives every linear of the model its scheme and decompresses it; its weights are compared with those of this package's
own reader of the same folder, and of its import, bit for bit. `--only NAME` reads some; the other rows stay as the
newest results have them. Results: benchmarks/results/<date>-compressed-tensors-reader.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
from measure import machine, newest_results, write_results
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen2Config
from vllm_cases import CASES, Case, all_rows
from vllm_oracle import folder_of

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.model import Model
from r1v_export.targets.compressed_tensors.runtime.reader import CompressedFiles

TARGET = "compressed-tensors"
WANTED = (TARGET, "internvl_chat", "bfloat16", "CPU")
"""Target, layout, dtype and kernels of the cases that are taken: each folder once."""


def schemes(config: QuantizationConfig, spec: ModelSpec) -> dict[str, QuantizationScheme]:
    """The scheme of every linear of the model that the package quantizes."""
    model, language = Model(spec), spec.language
    model.config = Qwen2Config(  # the package asks it for the shape of the cache
        hidden_size=language.hidden_size,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_heads,
        num_key_value_heads=language.num_kv_heads,
    )
    apply_quantization_config(model, config)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {n: module.quantization_scheme for n, module in linears.items() if hasattr(module, "quantization_scheme")}


def decompressed(folder: Path, spec: ModelSpec) -> dict[str, Tensor]:
    """Linear -> its weight as the package decompresses it."""
    config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    tensors = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    weights = {}
    for name, scheme in schemes(config, spec).items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        weights[name] = BaseCompressor.get_value_from_registry(scheme.format).decompress(own, scheme)["weight"]
    return weights


def row(case: Case, folder: Path) -> dict[str, Any]:
    """A row of docs/readers.md, see reader_matrix.py."""
    version = importlib.metadata.version(TARGET)
    about = {"artifact": case.artifact, "target": case.target, "precision": case.precision, "compared": "tensors"}
    about |= {"reader": TARGET, "version": version}
    files, imported = CompressedFiles(folder), Checkpoint.open(folder)
    try:
        weights = decompressed(folder, imported.spec)
    except Exception as error:  # whatever the package says is the result
        words = f"{type(error).__name__}: {error}"
        return about | {"loads": False, "computes": False, "equal": None, "of": None, "error": words}
    equal = [
        torch.equal(weight, files.dequantized(linear)) and torch.equal(weight, imported.read(f"{linear}.weight"))
        for linear, weight in weights.items()
    ]
    assert set(weights) == set(imported.quantized.linears), "the package quantizes other linears"
    return about | {"loads": True, "computes": True, "equal": sum(equal), "of": len(imported.quantized.linears)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where bundles are, or are built")
    parser.add_argument("--only", action="append", help="the cases whose name contains this")
    arguments = parser.parse_args()
    cases = [case for case in CASES if (case.target, case.layout, case.dtype, case.kernels) == WANTED]
    chosen = [case for case in cases if not arguments.only or any(part in case.name for part in arguments.only)]
    found = [row(case, folder_of(case, arguments.work)) for case in chosen]
    print(json.dumps(found, indent=2))
    matrix = all_rows(found, newest_results("compressed-tensors-reader")["matrix"] if arguments.only else (), cases)
    write_results(
        "compressed-tensors-reader", {"machine": machine((TARGET, "torch", "transformers")), "matrix": matrix}
    )


if __name__ == "__main__":
    main()
