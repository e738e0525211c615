"""Weights quantized per second and core, at the width of Qwen2-32B's linears.

Each algorithm is run as `quantization.quantize` runs it, single-threaded, on random weights and the Gram matrix of
random correlated activations (which costs what a trained model's does). Seconds are the process' own CPU seconds, so
that other work on the machine disturbs as little as it can; collecting the Gram matrix is not included.

Rounding to nearest begins with bfloat16, as checkpoints store weights, and takes turns with the same formulas on the
whole weight at once ("at once"), which gives the same bits.

AWQ and GPTQ quantize a group of linears that read one tensor, each in a process of its own, and tell how many percent
of the outputs' energy their error is, tr(dW H dW^T) / tr(W H W^T) over 512 rows of each linear. `--against` names the
checkout of another commit, whose runs take turns with this one's: git worktree add /tmp/before COMMIT.

    python benchmarks/quantize_throughput.py [--linear o_proj --linear gate_proj ...] [--only rtn] [--repeats 3]
        [--against /tmp/before]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from measure import commit, interleaved, machine, write_results
from torch import Tensor

from r1v_export.quantization.algorithms.quantize_block import quantize_block
from r1v_export.quantization.algorithms.rtn import round_to_nearest
from r1v_export.quantization.groups import LinearGroup, SmoothLayer
from r1v_export.quantization.quant_params import QuantParams
from r1v_export.quantization.quantized_linear import QuantizedLinear, quantize, scale_for
from r1v_export.quantization.recipe import Scheme
from r1v_export.quantization.statistics.activation_statistics import ActivationStatistics, BlockStatistics
from r1v_export.quantization.statistics.range_estimators import Observer

LINEARS = {
    "o_proj": (5120, 5120),
    "gate_proj": (27648, 5120),
    "down_proj": (5120, 27648),
    "half_down_proj": (5120, 13824),
}
"""[out, in] of Qwen2-32B, and half of a down_proj, for which AWQ and GPTQ need 8 GB: its Gram matrix takes 3 GB."""

GROUPS = {"qkv_proj": (("q_proj", 5120), ("k_proj", 1024), ("v_proj", 1024))} | {
    name: ((name, out_features),) for name, (out_features, _) in LINEARS.items()
}
"""What AWQ and GPTQ quantize together: linears and their out features."""

ALGORITHMS = ("awq", "gptq")
GROUP_SIZE = 128
TOKENS = 2048
ERROR_ROWS = 512


def activations(in_features: int) -> Tensor:
    """[TOKENS, in]: correlated, and of very different size per channel."""
    factors, loadings = torch.randn(TOKENS, 256), torch.randn(256, in_features) / 16
    return (factors @ loadings + 0.3 * torch.randn(TOKENS, in_features)) * torch.randn(in_features).exp()


def quantize_group(name: str, algorithm: str, matmul: str) -> dict[str, float]:
    """Quantize a group of linears to INT4.

    Args:
        matmul: bfloat16 only where the checkout's `quantize_block` has it.
    """
    in_features = LINEARS.get(name, LINEARS["o_proj"])[1]
    weights = {
        f"{linear}.weight": torch.randn(out_features, in_features) * 0.02 for linear, out_features in GROUPS[name]
    }
    x = activations(in_features)
    linears = tuple(linear for linear, _ in GROUPS[name])
    group = LinearGroup(linears[0], linears, in_features, "block", SmoothLayer(("norm.weight",)))
    options = {"type": "int4", "granularity": "group", "group_size": GROUP_SIZE, "algorithm": algorithm}
    schemes = dict.fromkeys(linears, Scheme.model_validate({"weights": options}))
    statistics = BlockStatistics({group.name: ActivationStatistics.from_activations(x)}, {group.name: x.T @ x})
    tensors = weights | {"norm.weight": torch.ones(in_features)}
    started = time.process_time()
    products = {} if matmul == "float32" else {"matmul": matmul}
    made = quantize_block([group], schemes, tensors, statistics, Observer(), **products)
    seconds = time.process_time() - started
    error = energy = torch.zeros((), dtype=torch.float64)
    for linear in linears:
        step = -(-len(weights[f"{linear}.weight"]) // ERROR_ROWS)
        rows = weights[f"{linear}.weight"][::step]
        found = made.linears[linear].dequantize()[::step] * made.overrides.get("norm.weight", torch.ones(()))
        error = error + (x @ (found - rows).T).double().square().sum()
        energy = energy + (x @ rows.T).double().square().sum()
    parameters = sum(weight.numel() for weight in weights.values())
    return {
        "million_parameters_per_second": parameters / 1e6 / seconds,
        "cpu_seconds": seconds,
        "error_percent": 100 * float(error / energy),
    }


def in_checkout(checkout: Path, name: str, algorithm: str, matmul: str = "float32") -> dict[str, float]:
    """`quantize_group` in a process that imports the package from a checkout."""
    command = [sys.executable, __file__, "--worker", name, algorithm, matmul]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(run.stdout)
    return measured


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


def rounding(linear: str) -> dict[str, Callable[[], dict[str, float]]]:
    """Ways to round a linear to nearest."""
    stored = (torch.randn(*LINEARS[linear]) * 0.02).bfloat16()
    contenders = {
        "fp8 rtn": partial(round_to_nearest, stored, "fp8"),
        "fp8 rtn at once": partial(at_once, stored, "fp8"),
        "int8 rtn": partial(round_to_nearest, stored, "int8"),
        "int8 rtn at once": partial(at_once, stored, "int8"),
        "int4 rtn": partial(round_to_nearest, stored, "int4", GROUP_SIZE),
        "int4 rtn at once": partial(at_once, stored, "int4", GROUP_SIZE),
    }
    return {name: partial(timed, quantize) for name, quantize in contenders.items()}


@click.command()
@click.option("--linear", "linears", multiple=True, type=click.Choice(list(GROUPS)), default=("o_proj",))
@click.option("--only", multiple=True, type=click.Choice(["rtn", *ALGORITHMS]), help="All, if omitted.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--against", type=click.Path(path_type=Path, exists=True), help="Checkout of another commit.")
@click.option("--worker", nargs=3, hidden=True)
def main(
    linears: tuple[str, ...],
    only: tuple[str, ...],
    repeats: int,
    against: Path | None,
    worker: tuple[str, str, str] | None,
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if worker:
        print(json.dumps(quantize_group(*worker)))
        return
    conditions, only = machine(("torch",)), only or ("rtn", *ALGORITHMS)
    results: dict[str, dict[str, Any]] = {}
    for linear in linears:
        print(linear, file=sys.stderr)
        measures = rounding(linear) if "rtn" in only and linear in LINEARS else {}
        for algorithm in only:
            if algorithm in ALGORITHMS:
                here = Path(__file__).parents[1]
                measures[f"int4 {algorithm}"] = partial(in_checkout, here, linear, algorithm)
                measures[f"int4 {algorithm} bfloat16"] = partial(in_checkout, here, linear, algorithm, "bfloat16")
                if against:
                    measures[f"int4 {algorithm} before"] = partial(in_checkout, against, linear, algorithm)
        results[linear] = {"linears": GROUPS[linear]} | interleaved(measures, repeats)
    before = {"before": commit(against)} if against else {}
    content = (
        {"machine": conditions, "threads": 1} | before | {"load_average_after": os.getloadavg()[0], "results": results}
    )
    print(write_results("quantize-throughput" if "rtn" in only else "awq-gptq-throughput", content))


if __name__ == "__main__":
    main()
