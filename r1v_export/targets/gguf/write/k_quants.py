"""Weights rounded to GGUF's K-quants Q4_K, Q5_K and Q6_K, by least squares.

A super-block is 256 values of a row. Its sub-blocks have scales of their own in few bits, and these a scale d in half
precision. With q a value's bits, s and m a sub-block's:

* Q4_K and Q5_K: 8 sub-blocks of 32; w = d s q - e m, q of 4 or 5 bits, s and m of 6, e in half precision like d;
* Q6_K: 16 sub-blocks of 16; w = d s q, q in -32..31, s in -128..127.

What is minimized is the squared error of the weights, which is that of a product with inputs of equal size: no
calibration takes part. Each sub-block's scale and minimum are the least-squares fit to the best of several roundings
of its values; then the scales are rounded, d and e fitted again to the whole super-block, and the values rounded last.

Letters: V values of a sub-block, B sub-blocks of a super-block, S super-blocks, N = B * S.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import torch
from torch import Tensor

from r1v_export.cpus import thread_count
from r1v_export.targets.gguf.write.half import half, too_large
from r1v_export.targets.gguf.write.types import SUPER_BLOCK, GgufType

_SUPER_BLOCKS = 120
"""Quantized at a time by a thread: few enough that torch starts no threads of its own for an operator."""

_WIDER = torch.linspace(-2.5, 1.5, 9).tolist()
"""Steps by which the range of a sub-block's values is stretched or cut before they are rounded."""
_WIDER_SIGNED = torch.linspace(-6.0, 0.0, 7).tolist()

_SMALLEST = 2.0**-24
_TOP = 63
"""Largest scale or minimum of 6 bits."""


def encode_k_quants(tensor: Tensor, kind: GgufType, where: str) -> np.ndarray:
    """The bytes of a matrix [R, I], I a multiple of 256: uint8 [R, bytes of I values].

    Raises:
        UsageError: a scale is too large for half precision.
    """
    blocks_SK = tensor.reshape(-1, SUPER_BLOCK)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    data = np.empty((len(blocks_SK), size), np.uint8)

    def encode(start: int) -> None:
        part = slice(start, start + _SUPER_BLOCKS)
        x_SK = blocks_SK[part].float()
        if not bool(x_SK.isfinite().all()):  # no fit would be better than 0
            raise too_large(where, float(x_SK.abs().max()))
        data[part] = _ENCODERS[kind](x_SK, where)

    with ThreadPoolExecutor(thread_count().count) as threads:
        for _ in threads.map(encode, range(0, len(blocks_SK), _SUPER_BLOCKS)):
            pass
    return data.reshape(len(tensor), -1)


def _encode_q4(blocks_SK: Tensor, where: str) -> np.ndarray:
    head, q_S8V = _affine(blocks_SK, 15, where)
    return np.concatenate([head, _half_bytes(q_S8V)], axis=1)


def _encode_q5(blocks_SK: Tensor, where: str) -> np.ndarray:
    head, q_S8V = _affine(blocks_SK, 31, where)
    high = np.packbits(q_S8V >> 4, axis=1, bitorder="little")[:, 0]
    return np.concatenate([head, high, _half_bytes(q_S8V & 15)], axis=1)


def _half_bytes(q_S8V: np.ndarray) -> np.ndarray:
    """Of two sub-blocks that follow each other, the first is in the low half of the bytes: uint8 [S, 128]."""
    pairs: np.ndarray = q_S8V[:, ::2] | q_S8V[:, 1::2] << 4
    return pairs.reshape(len(q_S8V), -1)


def _encode_q6(blocks_SK: Tensor, where: str) -> np.ndarray:
    x_VBS = blocks_SK.reshape(-1, 16, 16).permute(2, 1, 0).contiguous()
    fitted_BS = _fit_signed(x_VBS.flatten(1)).view(16, -1)
    largest_S = fitted_BS.gather(0, fitted_BS.abs().argmax(0, keepdim=True))[0]
    d_S = _half(largest_S / -128, where)
    s_BS, q_VBS = _round_signed(x_VBS, fitted_BS, d_S)
    squares_S = (s_BS.square() * q_VBS.square().sum(0)).sum(0)
    products_S = (s_BS * (q_VBS * x_VBS).sum(0)).sum(0)
    d_S = _half(torch.where(squares_S > 0, products_S / squares_S, d_S), where)
    s_BS, q_VBS = _round_signed(x_VBS, fitted_BS, d_S)
    # Two halves of 128 values, each four runs of 32: the low 4 bits of runs 0 and 1 share bytes with those of 2 and 3,
    # the high 2 bits of all four share a byte.
    q_SHR = (q_VBS.permute(2, 1, 0) + 32).to(torch.uint8).numpy().reshape(-1, 2, 4, 32)
    low = q_SHR[:, :, :2] & 15 | (q_SHR[:, :, 2:] & 15) << 4
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = np.bitwise_or.reduce(q_SHR >> 4 << shifts, axis=2)
    scales = s_BS.T.to(torch.int8).numpy().view(np.uint8)
    rows = len(q_SHR)
    return np.concatenate([low.reshape(rows, -1), high.reshape(rows, -1), scales, _bytes(d_S)], axis=1)


_ENCODERS: dict[GgufType, Callable[[Tensor, str], np.ndarray]] = {
    "Q4_K": _encode_q4,
    "Q5_K": _encode_q5,
    "Q6_K": _encode_q6,
}


def _affine(blocks_SK: Tensor, levels: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima as bytes, uint8 [S, 16], and values in 0..levels, uint8 [S, 8, 32]."""
    x_VBS = blocks_SK.reshape(-1, 8, 32).permute(2, 1, 0).contiguous()
    scales_BS, minima_BS = (fitted_N.view(8, -1) for fitted_N in _fit_affine(x_VBS.flatten(1), levels))
    d_S, e_S = _half(scales_BS.amax(0) / _TOP, where), _half(minima_BS.amax(0) / _TOP, where)
    s_BS, m_BS, q_VBS = _round_affine(x_VBS, scales_BS, minima_BS, d_S, e_S, levels)
    d_S, e_S = _fit_super_block(x_VBS, s_BS, m_BS, q_VBS, d_S, e_S, where)
    s_BS, m_BS, q_VBS = _round_affine(x_VBS, scales_BS, minima_BS, d_S, e_S, levels)
    s_S8, m_S8 = (bits_BS.T.to(torch.uint8).numpy() for bits_BS in (s_BS, m_BS))
    # The upper four sub-blocks' high 2 bits are those of the bytes that hold the lower four.
    first = s_S8[:, :4] | s_S8[:, 4:] >> 4 << 6
    second = m_S8[:, :4] | m_S8[:, 4:] >> 4 << 6
    third = s_S8[:, 4:] & 15 | (m_S8[:, 4:] & 15) << 4
    head = np.concatenate([_bytes(d_S), _bytes(e_S), first, second, third], axis=1)
    return head, q_VBS.permute(2, 1, 0).to(torch.uint8).numpy()


def _fit_affine(x_VN: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and minimum, both at least 0, with which scale * q - minimum is closest to x: float32 [N]."""
    sum_N, low_N = x_VN.sum(0), x_VN.amin(0).clamp(max=0)
    span_N = x_VN.amax(0) - low_N
    best_N = scale_N = minimum_N = torch.zeros_like(sum_N)
    for wider in (*_WIDER, None):
        start_N, factor_N = -minimum_N, _divided(1, scale_N)  # lastly, round with what fitted best
        if wider is not None:
            start_N, factor_N = low_N, _divided(levels + wider, span_N)
        q_VN = ((x_VN - start_N) * factor_N).round_().clamp_(0, levels)
        slope_N, offset_N, explained_N = _fit_line(x_VN, sum_N, q_VN)
        better_N = explained_N > best_N
        best_N = torch.where(better_N, explained_N, best_N)
        scale_N = torch.where(better_N, slope_N, scale_N)
        minimum_N = torch.where(better_N, -offset_N, minimum_N)
    return scale_N, minimum_N


def _fit_line(x_VN: Tensor, sum_N: Tensor, q_VN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least-squares fit of x by slope * q + offset, offset at most 0, and how much of the sum of squares of x it
    explains. Overwrites q."""
    count = len(x_VN)
    q_N, products_N, squares_N = q_VN.sum(0), (q_VN * x_VN).sum(0), q_VN.square_().sum(0)
    determinant_N = count * squares_N - q_N.square()
    slope_N = _divided(count * products_N - q_N * sum_N, determinant_N)
    offset_N = (sum_N - slope_N * q_N) / count
    # Where the offset would be above 0, and where all values are rounded to one, a slope is enough.
    alone_N = (offset_N > 0) | ((determinant_N == 0) & (squares_N > 0))
    slope_N = torch.where(alone_N, _divided(products_N, squares_N), slope_N)
    offset_N = torch.where(alone_N, 0, offset_N)
    return slope_N, offset_N, slope_N * products_N + offset_N * sum_N


def _round_affine(
    x_VBS: Tensor, scales_BS: Tensor, minima_BS: Tensor, d_S: Tensor, e_S: Tensor, levels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scales and minima in 6 bits [B, S], and the values [V, B, S] that are closest with these."""
    s_BS = (scales_BS * _divided(1, d_S)).round_().clamp_(0, _TOP)
    m_BS = (minima_BS * _divided(1, e_S)).round_().clamp_(0, _TOP)
    q_VBS = ((x_VBS + e_S * m_BS) * _divided(1, d_S * s_BS)).round_().clamp_(0, levels)
    return s_BS, m_BS, q_VBS


def _fit_super_block(
    x_VBS: Tensor, s_BS: Tensor, m_BS: Tensor, q_VBS: Tensor, d_S: Tensor, e_S: Tensor, where: str
) -> tuple[Tensor, Tensor]:
    """d and e that fit the rounded values best; those given where there is no such fit above 0."""
    sum_BS, q_BS, products_BS = x_VBS.sum(0), q_VBS.sum(0), (q_VBS * x_VBS).sum(0)
    dd_S = (s_BS.square() * q_VBS.square().sum(0)).sum(0)
    ee_S = len(x_VBS) * m_BS.square().sum(0)
    de_S = (s_BS * m_BS * q_BS).sum(0)
    xd_S, xe_S = (s_BS * products_BS).sum(0), (m_BS * sum_BS).sum(0)
    determinant_S = dd_S * ee_S - de_S.square()
    fitted_d_S = _divided(xd_S * ee_S - xe_S * de_S, determinant_S)
    fitted_e_S = _divided(xd_S * de_S - xe_S * dd_S, determinant_S)
    fits_S = (determinant_S > 0) & (fitted_d_S > 0) & (fitted_e_S >= 0)
    return _half(torch.where(fits_S, fitted_d_S, d_S), where), _half(torch.where(fits_S, fitted_e_S, e_S), where)


def _fit_signed(x_VN: Tensor) -> Tensor:
    """The scale, of either sign, with which scale * q is closest to x for q in -32..31: float32 [N]."""
    largest_N = x_VN.gather(0, x_VN.abs().argmax(0, keepdim=True))[0]
    best_N = scale_N = torch.zeros_like(largest_N)
    for wider in _WIDER_SIGNED:
        q_VN = (x_VN * _divided(-32 - wider, largest_N)).round_().clamp_(-32, 31)
        products_N, squares_N = (q_VN * x_VN).sum(0), q_VN.square_().sum(0)
        slope_N = _divided(products_N, squares_N)
        better_N = slope_N * products_N > best_N
        best_N = torch.where(better_N, slope_N * products_N, best_N)
        scale_N = torch.where(better_N, slope_N, scale_N)
    return scale_N


def _round_signed(x_VBS: Tensor, fitted_BS: Tensor, d_S: Tensor) -> tuple[Tensor, Tensor]:
    """Scales in 8 bits [B, S], and the values [V, B, S] that are closest with these."""
    s_BS = (fitted_BS * _divided(1, d_S)).round_().clamp_(-128, 127)
    return s_BS, (x_VBS * _divided(1, d_S * s_BS)).round_().clamp_(-32, 31)


def _divided(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """The quotient; 0 where the denominator is 0."""
    return torch.where(denominator == 0, 0, numerator / denominator)


def _half(values: Tensor, where: str) -> Tensor:
    """Round to half precision, but not to 0: scales in whole multiples of its smallest number still hold tiny weights.

    Raises:
        UsageError: a number is too large for half precision.
    """
    rounded = half(values, where)
    return torch.where(rounded == 0, _SMALLEST, rounded)


def _bytes(values_S: Tensor) -> np.ndarray:
    """Numbers in half precision as bytes: [S] -> uint8 [S, 2]."""
    return values_S.half().numpy()[:, None].view(np.uint8)
