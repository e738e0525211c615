"""Weights quantized per second and core, at the width of Qwen2-32B's linears.

Each algorithm is run as `quantization.quantize` runs it, single-threaded, on random weights and the Gram matrix of
random correlated activations (which costs what a trained model's does). Seconds are the process' own CPU seconds, so
that other work on the machine disturbs as little as it can; collecting the Gram matrix is not included.

    python benchmarks/quantize_throughput.py [--linear o_proj --linear gate_proj --linear down_proj] [--repeats 3]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import click
import torch
from measure import interleaved, machine, write_results
from torch import Tensor

from r1v_export.quantization.algorithms.awq import search_scale
from r1v_export.quantization.algorithms.clipping import clipped_params
from r1v_export.quantization.algorithms.gptq import gptq
from r1v_export.quantization.algorithms.rtn import round_to_nearest
from r1v_export.quantization.quantized_linear import QuantizedLinear

LINEARS = {"o_proj": (5120, 5120), "gate_proj": (27648, 5120), "down_proj": (5120, 27648)}
"""[out, in] of Qwen2-32B. AWQ and GPTQ of down_proj need 15 GB: its Gram matrix alone is 3 GB."""

GROUP = 128
TOKENS = 2048


def activations(in_features: int) -> Tensor:
    """[TOKENS, in]: correlated, and of very different size per channel."""
    factors, loadings = torch.randn(TOKENS, 256), torch.randn(256, in_features) / 16
    return (factors @ loadings + 0.3 * torch.randn(TOKENS, in_features)) * torch.randn(in_features).exp()


def awq_int4(weight: Tensor, gram: Tensor, mean: Tensor) -> QuantizedLinear:
    scale = search_scale([weight], gram, mean, "int4", GROUP)
    scaled = weight * scale
    params = clipped_params(scaled, "int4", GROUP, gram / scale / scale[:, None])
    return params.linear(params.qweight(scaled))


def gptq_int4(weight: Tensor, gram: Tensor) -> QuantizedLinear:
    return gptq(weight, gram, clipped_params(weight, "int4", GROUP, gram))


def timed(quantize: Callable[[], QuantizedLinear]) -> dict[str, float]:
    started = time.process_time()
    parameters = quantize().qweight.numel()
    return {"million_parameters_per_second": parameters / 1e6 / (time.process_time() - started)}


@click.command()
@click.option("--linear", "linears", multiple=True, type=click.Choice(list(LINEARS)), default=("o_proj",))
@click.option("--repeats", default=3, show_default=True)
def main(linears: tuple[str, ...], repeats: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    conditions = machine(("torch",))
    results = {}
    for linear in linears:
        print(linear, file=sys.stderr)
        weight, x = torch.randn(*LINEARS[linear]) * 0.02, activations(LINEARS[linear][1])
        gram, mean = x.T @ x, x.abs().mean(0)
        contenders = {
            "fp8 rtn": partial(round_to_nearest, weight, "fp8"),
            "int4 rtn": partial(round_to_nearest, weight, "int4", GROUP),
            "int4 awq": partial(awq_int4, weight, gram, mean),
            "int4 gptq": partial(gptq_int4, weight, gram),
        }
        measures = {name: partial(timed, quantize) for name, quantize in contenders.items()}
        results[linear] = {"shape": LINEARS[linear]} | interleaved(measures, repeats)
    print(write_results("quantize-throughput", {"machine": conditions, "threads": 1, "results": results}))


if __name__ == "__main__":
    main()
