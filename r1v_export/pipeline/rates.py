"""How fast this machine computes, measured before a plan is made."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from r1v_export.config import Matmul
from r1v_export.cpus import thread_count

if TYPE_CHECKING:
    from r1v_export.quantization.number_formats import WeightType

_PROBE_S = 0.08
_PRODUCT_SHAPE = (512, 2048, 2048)
_WEIGHT_SHAPE = (512, 2048)
_GROUP_SIZE = 128


@dataclass(frozen=True)
class Rates:
    """How fast this machine computes.

    Attributes:
        cores: those that operators use.
        float32, bfloat16: operations per core-second in products of large matrices, by what the operands are.
        four_bits, eight_bits: weights per core-second that are rounded to nearest, by what they become: to INT4 in
            groups, and to FP8 with a scale per output channel.
    """

    cores: int
    float32: float
    bfloat16: float
    four_bits: float
    eight_bits: float

    def flops(self, matmul: Matmul) -> float:
        """Operations per second in products, on all cores."""
        return self.cores * (self.float32 if matmul == "float32" else self.bfloat16)

    def rounded(self, kind: WeightType) -> float:
        """Weights per second that are rounded to a type, on all cores."""
        return self.cores * (self.four_bits if kind in ("int4", "uint4") else self.eight_bits)


@lru_cache(maxsize=1)
def measured_rates() -> Rates:
    """Measure the rates, in less than half a second. Other processes on the machine do not count."""
    import torch

    from r1v_export.quantization.quant_params import QuantParams

    stored = torch.linspace(-1, 1, _WEIGHT_SHAPE[0] * _WEIGHT_SHAPE[1]).reshape(_WEIGHT_SHAPE).bfloat16()
    four_bits = _core_seconds(partial(QuantParams.round_to_nearest, stored, "int4", _GROUP_SIZE))
    eight_bits = _core_seconds(partial(QuantParams.round_to_nearest, stored, "fp8", None))
    return Rates(
        thread_count().count,
        _product_rate("float32"),
        _product_rate("bfloat16"),
        stored.numel() / four_bits,
        stored.numel() / eight_bits,
    )


def measured_flops(matmul: Matmul) -> float:
    """`Rates.flops`, for what needs nothing else of the rates: a third of the time."""
    return thread_count().count * _product_rate(matmul)


@lru_cache(maxsize=2)
def _product_rate(matmul: Matmul) -> float:
    """Operations per core-second in products of large matrices."""
    import torch

    rows, inner, columns = _PRODUCT_SHAPE
    dtype = getattr(torch, matmul)
    x, weight = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    return 2 * rows * inner * columns / _core_seconds(partial(torch.nn.functional.linear, x, weight))


def _core_seconds(work: Callable[[], object]) -> float:
    """CPU time that some work takes, of all threads of this process."""
    work()
    started, count = time.process_time(), 0
    while time.process_time() - started < _PROBE_S:
        work()
        count += 1
    return (time.process_time() - started) / count
