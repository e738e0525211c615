"""nvidia-modelopt's calibration of decoder layers of Qwen2-32B's width or a part of it: the peer of
`calibration_peer.py`, which runs this in an environment of modelopt's own. Prints CPU seconds of `mtq.quantize`, of one
forward pass alone, and the process's peak memory, as JSON."""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from collections.abc import Sequence
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

CONFIGS = {
    "fp8": mtq.FP8_DEFAULT_CFG,
    "int4-awq": mtq.INT4_AWQ_CFG,
    "int4-gptq": {**mtq.INT4_AWQ_CFG, "algorithm": {"method": "gptq"}},
}
"""Of AWQ, alpha in steps of 0.1 and no clipping; of GPTQ, damping of 0.01 and blocks of 128 columns."""
WIDTH = {
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}
NOISE_VALUES, VOCABULARY = 8 << 20, 4096


def make_model(layers: int, part: int) -> torch.nn.Module:
    """Layers of one repeated piece of noise, in bfloat16, behind a small embedding table.

    Args:
        part: of the width, such as 2 for half of it.
    """
    sizes: dict[str, Any] = {name: size // part for name, size in WIDTH.items()}
    config = Qwen2Config(num_hidden_layers=layers, **sizes, rms_norm_eps=1e-5, vocab_size=VOCABULARY)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16).eval().model
    noise = torch.randn(NOISE_VALUES).mul_(0.02).bfloat16()
    for name, parameter in model.named_parameters():
        values = parameter.data.view(-1)
        if "norm" in name:
            values.fill_(1)
            continue
        for piece in values.split(NOISE_VALUES):
            piece.copy_(noise[: len(piece)])
    return model


def config_of(kind: str, left: Sequence[str]) -> dict[str, Any]:
    """modelopt's own, but that it leaves some linears as they are."""
    config = copy.deepcopy(CONFIGS[kind])
    config["quant_cfg"] = [*config["quant_cfg"], *({"quantizer_name": f"*{name}*", "enable": False} for name in left)]
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", choices=CONFIGS)
    parser.add_argument("layers", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("part", type=int)
    parser.add_argument("left", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # or the model would first be there in float32
    model, ids = make_model(options.layers, options.part), torch.randint(0, VOCABULARY, (1, options.tokens))
    with torch.no_grad():
        started = time.process_time()
        model(ids)
        forward = time.process_time() - started
        started = time.process_time()
        mtq.quantize(model, config_of(options.format, options.left), lambda quantized: quantized(ids))
        calibrate = time.process_time() - started
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"cpu_seconds": calibrate, "forward_cpu_seconds": forward, "peak_rss_gb": peak_gb}))


if __name__ == "__main__":
    main()
