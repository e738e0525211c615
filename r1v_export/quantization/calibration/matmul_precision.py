"""Products of bfloat16 values, accumulated in float32, in a calibration's forward passes on the CPU.

A bfloat16 checkpoint's weights stay as they are stored, and are not copied; what enters a linear is rounded to
bfloat16, as it is where the model runs in bfloat16, and so is what attention and Gram matrices multiply. Norms,
softmax, the residual stream and all sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import Matmul, MatmulPrecision
from r1v_export.errors import UsageError
from r1v_export.quantization.sizes import parameter_count

BFLOAT16_FROM_PARAMETERS = 1e9
"""Below, float32 takes minutes, and gives the same numbers on every CPU."""

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "sve_bf16")


def choose_matmul(wanted: MatmulPrecision, checkpoint: Checkpoint, device: str) -> Matmul:
    """What the operands of products are rounded to.

    Args:
        wanted: `auto` is bfloat16 for large bfloat16 models on CPUs with instructions for it.

    Raises:
        UsageError: bfloat16 is wanted for weights that it would round.
    """
    stored, on_cpu = checkpoint.spec.dtype, device == "cpu"
    if wanted == "bfloat16" and on_cpu and stored != "bfloat16":
        raise UsageError(
            "Products in bfloat16 would round this checkpoint's weights.",
            where=checkpoint.folder,
            expected="weights in bfloat16",
            found=f"weights in {stored}",
            fix="pass --matmul-precision float32",
        )
    if wanted == "auto":
        large = parameter_count(checkpoint.spec) >= BFLOAT16_FROM_PARAMETERS
        wanted = "bfloat16" if large and stored == "bfloat16" and has_bfloat16_products() else "float32"
    return wanted if on_cpu else "float32"


def has_bfloat16_products() -> bool:
    """Whether this CPU multiplies bfloat16 values by instructions of its own."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _INSTRUCTIONS)


class BFloat16Linear(nn.Linear):
    """A linear with a bfloat16 weight between float32 tensors."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute [..., in] -> [..., out], float32."""
        y = F.linear(x.bfloat16(), self.weight).float()
        return y if self.bias is None else y + self.bias


def use_bfloat16_linears(module: nn.Module) -> None:
    """Put a `BFloat16Linear` in the place of every linear of a module on device "meta"."""
    for name, linear in list(module.named_modules()):
        if isinstance(linear, nn.Linear):
            has_bias = linear.bias is not None
            module.set_submodule(name, BFloat16Linear(linear.in_features, linear.out_features, has_bias, "meta"))


@contextmanager
def matmul_precision(matmul: Matmul) -> Iterator[None]:
    """Compute float32 products outside linears, those of attention and of Gram matrices, from operands rounded so."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16" if matmul == "bfloat16" else before
    try:
        yield
    finally:
        settings.fp32_precision = before
