"""Weights quantized per second and core, at the width of Qwen2-32B's linears.

Each algorithm is run as `quantization.quantize` runs it, single-threaded, on random weights and the Gram matrix of
random correlated activations (which costs what a trained model's does). Seconds are the process' own CPU seconds, so
that other work on the machine disturbs as little as it can; collecting the Gram matrix is not included.

Rounding to nearest begins with bfloat16, as checkpoints store weights, and takes turns with the same formulas on the
whole weight at once ("at once"), which gives the same bits.

    python benchmarks/quantize_throughput.py [--linear o_proj --linear gate_proj ...] [--only rtn] [--repeats 3]
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
from r1v_export.quantization.quant_params import QuantParams
from r1v_export.quantization.quantized_linear import QuantizedLinear, quantize, scale_for

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


def at_once(weight: Tensor, kind: str, group_size: int | None = None) -> QuantizedLinear:
    """Rounding to nearest without blocks: every step makes a tensor of the weight's size."""
    groups = weight.float().unflatten(1, (-1, group_size or weight.shape[1]))
    low, high = torch.aminmax(groups, dim=-1)
    params = QuantParams(kind, scale_for(torch.maximum(-low, high), kind), None)
    return params.linear(quantize(groups, params.scale[..., None], kind).flatten(1))


def timed(quantize: Callable[[], QuantizedLinear]) -> dict[str, float]:
    started = time.process_time()
    parameters = quantize().qweight.numel()
    return {"million_parameters_per_second": parameters / 1e6 / (time.process_time() - started)}


@click.command()
@click.option("--linear", "linears", multiple=True, type=click.Choice(list(LINEARS)), default=("o_proj",))
@click.option("--only", multiple=True, type=click.Choice(["rtn", "awq", "gptq"]), help="All, if omitted.")
@click.option("--repeats", default=3, show_default=True)
def main(linears: tuple[str, ...], only: tuple[str, ...], repeats: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    conditions = machine(("torch",))
    results = {}
    for linear in linears:
        print(linear, file=sys.stderr)
        weight, x = torch.randn(*LINEARS[linear]) * 0.02, activations(LINEARS[linear][1])
        gram, mean, stored = x.T @ x, x.abs().mean(0), weight.bfloat16()
        contenders = {
            "fp8 rtn": partial(round_to_nearest, stored, "fp8"),
            "fp8 rtn at once": partial(at_once, stored, "fp8"),
            "int8 rtn": partial(round_to_nearest, stored, "int8"),
            "int8 rtn at once": partial(at_once, stored, "int8"),
            "int4 rtn": partial(round_to_nearest, stored, "int4", GROUP),
            "int4 rtn at once": partial(at_once, stored, "int4", GROUP),
            "int4 awq": partial(awq_int4, weight, gram, mean),
            "int4 gptq": partial(gptq_int4, weight, gram),
        }
        chosen = {name: quantize for name, quantize in contenders.items() if not only or name.split()[1] in only}
        measures = {name: partial(timed, quantize) for name, quantize in chosen.items()}
        results[linear] = {"shape": LINEARS[linear]} | interleaved(measures, repeats)
    print(write_results("quantize-throughput", {"machine": conditions, "threads": 1, "results": results}))


if __name__ == "__main__":
    main()
