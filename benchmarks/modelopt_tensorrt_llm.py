"""nvidia-modelopt's TensorRT-LLM export of a Qwen2 folder: the peer of `tensorrt_llm_checkpoint.py`, which runs this in
an environment of modelopt's own (nvidia-modelopt, transformers, requests)."""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_tensorrt_llm_checkpoint
from modelopt_export import CACHES, CONFIGS, give_ranges
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

ALL = {**CONFIGS, "int8": mtq.INT8_SMOOTHQUANT_CFG}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", choices=[*ALL, "bf16"], required=True)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--kv-cache", choices=CACHES)
    parser.add_argument("--amax", type=Path)
    parser.add_argument("--times", type=Path, help="where to write how long the steps took, as JSON")
    parser.add_argument("--tokens", type=int, default=8, help="how many it is calibrated on")
    options = parser.parse_args()
    torch.manual_seed(0)
    started, seconds = time.monotonic(), {}
    model = Qwen2ForCausalLM.from_pretrained(options.model, dtype="auto").eval()
    seconds["load"] = time.monotonic() - started
    started = time.monotonic()
    if options.format != "bf16":
        config = copy.deepcopy(ALL[options.format])
        config["algorithm"] = "max"
        if options.kv_cache is not None:
            config["quant_cfg"] = [*config["quant_cfg"], *CACHES[options.kv_cache]]
        with torch.no_grad():
            model = mtq.quantize(model, config, lambda m: m(torch.arange(options.tokens)[None]))
        if options.amax is not None:
            give_ranges(model, load_file(options.amax))
    seconds["calibrate"] = time.monotonic() - started
    started = time.monotonic()
    with torch.inference_mode():
        export_tensorrt_llm_checkpoint(
            model, "qwen", torch.bfloat16, export_dir=options.out, inference_tensor_parallel=options.tp
        )
    seconds["export"] = time.monotonic() - started
    if options.times is not None:
        options.times.write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
