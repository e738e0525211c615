"""nvidia-modelopt's unified export of a Qwen2 folder: the peer of `unified_checkpoint.py`, which runs this in an
environment of modelopt's own (nvidia-modelopt, transformers, requests).

With `--amax`, every quantizer is given a range in place of what it saw: {linear}.weight, {linear}.input and
{layer}.self_attn.key, .value.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

CONFIGS = {
    "fp8": mtq.FP8_DEFAULT_CFG,
    "fp8-rowwise": mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG,
    "int4": mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG,
    "w4a8": mtq.W4A8_AWQ_BETA_CFG,
}


CACHES = {
    "fp8": mtq.FP8_KV_CFG["quant_cfg"],
    "int8": [{"quantizer_name": "*[kv]_bmm_quantizer", "cfg": {"num_bits": 8}}],
}
"""What turns a key-value cache into 8 bits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", choices=CONFIGS, required=True)
    parser.add_argument("--kv-cache", choices=CACHES)
    parser.add_argument("--amax", type=Path)
    parser.add_argument("--tokens", type=int, default=8, help="how many it is calibrated on")
    parser.add_argument("--times", type=Path, help="where to write how long the steps took, as JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    seconds = {}
    started = time.monotonic()
    model = Qwen2ForCausalLM.from_pretrained(options.model, dtype="auto").eval()
    seconds["load"] = time.monotonic() - started
    config = copy.deepcopy(CONFIGS[options.format])
    config["algorithm"] = "max"
    if options.kv_cache is not None:
        config["quant_cfg"] = [*config["quant_cfg"], *CACHES[options.kv_cache]]
    started = time.monotonic()
    with torch.no_grad():
        model = mtq.quantize(model, config, lambda m: m(torch.arange(options.tokens)[None]))
    seconds["calibrate"] = time.monotonic() - started
    if options.amax is not None:
        give_ranges(model, load_file(options.amax))
    started = time.monotonic()
    with torch.no_grad():
        export_hf_checkpoint(model, export_dir=options.out)
    seconds["export"] = time.monotonic() - started
    if options.times is not None:
        options.times.write_text(json.dumps(seconds))


def give_ranges(model: torch.nn.Module, ranges: dict[str, torch.Tensor]) -> None:
    """Put known ranges in the place of those that were observed."""
    for name, module in model.named_modules():
        for key, attribute in (("weight", "weight_quantizer"), ("input", "input_quantizer")):
            quantizer = getattr(module, attribute, None)
            if f"{name}.{key}" in ranges and quantizer is not None:
                first = quantizer[0] if isinstance(quantizer, torch.nn.Sequential) else quantizer
                first._amax.copy_(ranges[f"{name}.{key}"].reshape(first._amax.shape))
                if first is not quantizer:
                    quantizer[1]._amax.copy_(ranges[f"{name}.weight_2"])
        for key, attribute in (("key", "k_bmm_quantizer"), ("value", "v_bmm_quantizer")):
            quantizer = getattr(module, attribute, None)
            if f"{name}.{key}" in ranges and quantizer is not None:
                quantizer._amax.copy_(ranges[f"{name}.{key}"])


if __name__ == "__main__":
    main()
