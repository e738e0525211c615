"""The squared error of a linear's outputs, exactly and without activations.

With D = Q(W) - W and the Gram matrix H = sum x x^T of the inputs, it is tr(D H D^T): for each row d of D, d H d^T. H is
symmetric, so of its blocks only those on and above the diagonal are multiplied: half of the full product.
Shape letters: O output features, I input features, B input features of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 512


def output_errors(error_OI: Tensor, gram_II: Tensor) -> Tensor:
    """d H d^T of each row d of an error [O, I], in its dtype: [O]."""
    in_features = error_OI.shape[1]
    spare = error_OI.new_empty(len(error_OI), min(in_features, _BLOCK))
    total_O = torch.zeros_like(error_OI[:, 0])
    for start in range(0, in_features, _BLOCK):
        end = min(start + _BLOCK, in_features)
        error_OB, product_OB = error_OI[:, start:end], spare[:, : end - start]
        torch.mm(error_OB, gram_II[start:end, start:end], out=product_OB)
        if start:
            product_OB.addmm_(error_OI[:, :start], gram_II[:start, start:end], alpha=2)
        total_O += product_OB.mul_(error_OB).sum(1)
    return total_O
