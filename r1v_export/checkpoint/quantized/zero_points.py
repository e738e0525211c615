"""Which of GPTQ's two conventions for stored zero points a checkpoint's values show.

Weights scatter around zero: within a group, the mean of value minus zero point is the group's mean weight in steps of
its scale, a fraction of one. Under the wrong convention every zero point is one step off, and so is every mean. So in
each linear the groups vote for the convention under which their mean is nearer to zero, and the median of those means
must lie near zero. A linear that shows neither (random values, weights far from zero on average) does not count; a
checkpoint is read against its declaration only where nearly all linears agree.

Shape letters: O output features, I input features, G groups, g inputs of a group.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from r1v_export.checkpoint.quantized.int4_packing import unpack
from r1v_export.checkpoint.quantized.layout import StoredLinear, order_by_group, unsupported
from r1v_export.checkpoint.tensor_file import StoredTensor

VERSIONS = {"gptq": 1, "gptq_v2": 0}
"""`checkpoint_format` -> what is added to a stored zero point, modulo 16."""

_ORDER = tuple(range(8))

LINEARS = 24
"""How many linears are read, evenly over the model."""
VALUES = 1 << 18
"""How many values of each: 2,000 groups of 128."""
SHARE = 0.6
"""Of a linear's groups that must vote the same way: means of 32 values scatter by 0.7 steps, so 0.75 do; random values
and zero points give 0.5."""
CENTER = 0.3
"""How far the median of a linear's means may lie from zero, in steps: the other convention's is 1 from there."""
AGREEMENT = 0.75
"""Of the linears that must show one convention, and none the other."""


def symmetric_zero(bits: int) -> int:
    """The zero point of all groups in symmetric checkpoints: 8 of 4 bits, 128 of 8."""
    return 1 << bits - 1


def stored_offset(linears: Mapping[str, StoredLinear], symmetric: bool, bits: int = 4) -> int | None:
    """What must be added to stored zero points, as the quantized values show it; None where they do not.

    Args:
        bits: of each value; 4, or 8 where `symmetric`.

    Raises:
        CheckpointError: a symmetric checkpoint with other zero points than `symmetric_zero`.
    """
    every = max(1, len(linears) // LINEARS)
    parts = [part for linear in list(linears.values())[::every] for part in linear.parts]
    if not parts:
        return None
    if symmetric:
        return _symmetric_offset(parts, bits)
    shown = [offset_of(*_read(part)) for part in parts]
    for offset in VERSIONS.values():
        if shown.count(offset) >= AGREEMENT * len(shown) and shown.count(1 - offset) == 0:
            return offset
    return None


def offset_of(qweight_OGg: Tensor, stored_OG: Tensor) -> int | None:
    """What one linear shows.

    Args:
        qweight_OGg: quantized values [out, groups, group size], 0..15.
        stored_OG: zero points [out, groups] as stored.
    """
    mean_OG = qweight_OGg.float().mean(-1)
    residual = {offset: mean_OG - ((stored_OG + offset) & 0xF).float() for offset in VERSIONS.values()}
    for offset, means in residual.items():
        votes = means.abs() < residual[1 - offset].abs()
        if float(votes.float().mean()) >= SHARE and abs(float(means.median())) <= CENTER:
            return offset
    return None


def _read(part: Mapping[str, StoredTensor]) -> tuple[Tensor, Tensor]:
    """Quantized values [O, G, g] and stored zero points [O, G] of the first groups of a linear."""
    qweight, qzeros = part["qweight"].read(), part["qzeros"].read()
    words = qweight.shape[0] // qzeros.shape[0]
    groups = max(1, VALUES // (8 * words * qweight.shape[1]))
    outputs = max(1, min(qzeros.shape[1], VALUES // (8 * 8 * words)))
    qweight, qzeros = qweight[:, : 8 * outputs], qzeros[:groups, :outputs]
    order_I = order_by_group(part["g_idx"].read()) if "g_idx" in part else None
    if order_I is None:
        qweight_IO = unpack(qweight[: groups * words], 0, _ORDER)
    else:
        qweight_IO = unpack(qweight, 0, _ORDER)[order_I[: groups * words * 8]]
    stored_GO = unpack(qzeros, 1, _ORDER)
    return qweight_IO.t().unflatten(1, (stored_GO.shape[0], -1)), stored_GO.t()


def _symmetric_offset(parts: list[Mapping[str, StoredTensor]], bits: int) -> int:
    """Symmetric zero points are known, so the stored ones say what must be added."""
    order, zero = tuple(range(32 // bits)), symmetric_zero(bits)
    found = {int(value) for part in parts for value in unpack(part["qzeros"].read(), 1, order, bits).unique()}
    for offset in VERSIONS.values():
        if found == {zero - offset}:
            return offset
    tensor = parts[0]["qzeros"]
    raise unsupported(
        "Symmetric GPTQ with zero points of its own is not supported.",
        f"{tensor.name} in {tensor.file.name}",
        f"zero points of {zero}, stored as {zero - 1} (gptq) or {zero} (gptq_v2)",
        f"stored {', '.join(map(str, sorted(found)))}",
        fix="if it was quantized with zero points, set sym: false in its quantization settings" if bits == 4 else None,
    )
