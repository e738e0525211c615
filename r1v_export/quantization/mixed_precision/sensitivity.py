"""Sensitivity: how much the model's answers change when one module alone is quantized.

A module here is a linear group: the linears that read one tensor (q/k/v, gate/up), which engines fuse and so must agree
on a precision. Two measures are taken, each on the calibration samples:

    snr_db   signal to noise of the output of the module's block, in decibels: needs that block alone
    kl       mean KL divergence of the next-token distributions from the float model's, in nats: needs all blocks behind
             the module, so the whole model has to fit into memory

Tokens in front of a sample's last image count for nothing in `kl`: nobody samples from their distributions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors
from r1v_export.errors import BundleError, UsageError
from r1v_export.files import read_regular_bytes
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.quantization.apply import torch as fake
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.artifact.documents import checkpoint_fingerprint
from r1v_export.quantization.calibration.blocks import Block, blocks, materialize
from r1v_export.quantization.calibration.dataset import CalibrationSample, CalibrationSet
from r1v_export.quantization.groups import LinearGroup
from r1v_export.quantization.kv_scales import KVScales
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.strict import StrictModel, parse_json

FLOAT = "16-bit"
"""The precision of a module that is not quantized."""

_LARGEST_SNR_DB = 200.0
"""Written where there is no noise at all."""


class Candidate(StrictModel):
    """One module in one precision, all others in float."""

    module: str
    """Name of the group: its first linear."""
    precision: str
    size_bytes: int
    snr_db: float
    kl: float | None
    """None where only the signal-to-noise ratio was measured."""


class Selection(StrictModel):
    """What was chosen from a table."""

    budget: str
    precisions: dict[str, str]
    """By module."""
    size_bytes: int
    """Of all weights in these precisions."""
    kl: float | None
    """Measured, of the model with all of them; None where the table has none."""


class SensitivityTable(StrictModel):
    """Contents of `sensitivity.json`."""

    schema_version: int = 1
    checkpoint: str
    """`artifact.checkpoint_fingerprint` of the model."""
    samples: int
    fixed_bytes: int
    """Of everything that no option is about, in 16 bits: embeddings, norms, biases, the head."""
    options: tuple[Candidate, ...]
    """In model order; each module has one of `FLOAT`."""
    selection: Selection | None = None
    """Where precisions were chosen from it."""


def read_table(path: Path) -> SensitivityTable:
    """Read `sensitivity.json`.

    Raises:
        BundleError: missing or damaged.
    """
    try:
        text = read_regular_bytes(path)
    except OSError as error:
        raise BundleError("The sensitivity table cannot be read.", where=path, found=error) from error
    return parse_json(SensitivityTable, text, BundleError, "The sensitivity table is invalid", where=path)


def measure(
    checkpoint: Checkpoint,
    calibration: CalibrationSet,
    artifacts: Mapping[str, Artifact],
    *,
    with_kl: bool = True,
    on_progress: ProgressCallback = ignore_progress,
) -> SensitivityTable:
    """Quantize every module alone, in every precision.

    Args:
        artifacts: by precision: a calibration in which the modules have that precision.
        with_kl: also measure the divergence of the model's answers, holding the whole model in float32; otherwise
            one block is held at a time.
        on_progress: called after every block, with how many are done and how many there are.

    Raises:
        UsageError: an artifact whose modules cannot be quantized alone (AWQ, SmoothQuant).
    """
    _require_independent(artifacts)
    samples, chain = calibration.samples, blocks(checkpoint.spec)
    cpu = torch.device("cpu")
    held = [materialize(block, checkpoint, torch.float32, cpu) for block in chain] if with_kl else None
    reference = _answers(chain, held, 0, samples, [None] * len(samples)) if held else None
    options: list[Candidate] = []
    given: Sequence[Tensor | None] = [None] * len(samples)
    for index, block in enumerate(chain):
        module = held[index] if held else materialize(block, checkpoint, torch.float32, cpu)
        outputs = _forward(block, module, samples, given)
        for group in block.groups:
            found = []
            for precision, artifact in artifacts.items():
                quantized = {name: artifact.linear(name) for name in group.linears if name in artifact.schemes}
                if quantized:
                    noisy = _forward(block, _quantized_copy(block, module, quantized), samples, given)
                    kl = (
                        _kl(reference, _answers(chain, held, index + 1, samples, noisy)) if held and reference else None
                    )
                    found.append(_candidate(group, precision, quantized, checkpoint.spec, _snr_db(outputs, noisy), kl))
            if found:
                unchanged = _candidate(group, FLOAT, {}, checkpoint.spec, _LARGEST_SNR_DB, 0.0 if with_kl else None)
                options += [unchanged, *found]
        given = outputs
        on_progress(index + 1, len(chain))
    modules = {option.module for option in options}
    return SensitivityTable(
        checkpoint=checkpoint_fingerprint(checkpoint),
        samples=len(samples),
        fixed_bytes=_fixed_bytes(checkpoint.spec, [s for block in chain for s in block.groups if s.name in modules]),
        options=tuple(options),
    )


def divergence(checkpoint: Checkpoint, calibration: CalibrationSet, artifact: Artifact) -> float:
    """KL of the whole quantized model's answers from the float model's, measured as in the table."""
    samples, chain = calibration.samples, blocks(checkpoint.spec)
    answers = []
    for quantized in (False, True):
        modules = []
        for block in chain:
            module = materialize(block, checkpoint, torch.float32, torch.device("cpu"))
            if quantized:
                linears = {n: artifact.linear(n) for s in block.groups for n in s.linears if n in artifact.schemes}
                names = {block.checkpoint_name(parameter) for parameter in module.state_dict()}
                overrides = {name: read() for name, read in artifact.overrides.items() if name in names}
                caches = {n: s for n, s in artifact.cache_scales.items() if n.startswith(f"{block.name}.")}
                module = _quantized_copy(block, module, linears, overrides, caches)
            modules.append(module)
        answers.append(_answers(chain, modules, 0, samples, [None] * len(samples)))
    return _kl(*answers)


def _require_independent(artifacts: Mapping[str, Artifact]) -> None:
    for precision, artifact in artifacts.items():
        if artifact.overrides:
            raise UsageError(
                "Modules cannot be quantized alone where an algorithm moves scales between them.",
                where=f"{precision}: recipe {artifact.recipe.name}",
                expected="rtn or gptq",
                found=next(iter(artifact.overrides)),
                fix="choose a recipe of rtn or gptq",
            )


def _quantized_copy(
    block: Block,
    module: nn.Module,
    linears: Mapping[str, QuantizedLinear],
    overrides: Mapping[str, Tensor] | None = None,
    cache_scales: Mapping[str, KVScales] | None = None,
) -> nn.Module:
    """A copy of a block's module with some of its linears quantized."""
    changed = copy.deepcopy(module)
    fake.apply(
        changed,
        {block.module_name(name): linear for name, linear in linears.items()},
        {block.module_name(name): tensor for name, tensor in (overrides or {}).items()},
        cache_scales={block.module_name(name): scales for name, scales in (cache_scales or {}).items()},
    )
    return changed


@torch.no_grad()
def _forward(
    block: Block, module: nn.Module, samples: Sequence[CalibrationSample], given: Sequence[Tensor | None]
) -> list[Tensor]:
    return [block.forward(module, sample, x) for sample, x in zip(samples, given, strict=True)]


def _answers(
    chain: Sequence[Block],
    modules: Sequence[nn.Module],
    start: int,
    samples: Sequence[CalibrationSample],
    given: Sequence[Tensor | None],
) -> list[Tensor]:
    """Logits [tokens that count, vocab] of each sample, from what enters block `start`."""
    image_token_id = chain[0].spec.image_token_id
    for block, module in zip(chain[start:], modules[start:], strict=True):
        given = _forward(block, module, samples, given)
    found = []
    for sample, logits_1SV in zip(samples, given, strict=True):
        assert logits_1SV is not None
        ids = sample.token_ids
        first = len(ids) - ids[::-1].index(image_token_id) if image_token_id in ids else 0
        found.append(logits_1SV[0, min(first, len(ids) - 1) :])
    return found


def _kl(reference: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Mean over all tokens of the KL divergence of the second logits' distributions from the first's, nats."""
    total = 0.0
    for logits_NV, noisy_NV in zip(reference, found, strict=True):
        # In float64: near zero, a divergence is the difference of numbers that float32 cannot tell apart.
        p, q = F.log_softmax(logits_NV.double(), dim=-1), F.log_softmax(noisy_NV.double(), dim=-1)
        total += float((p.exp() * (p - q)).sum())
    return max(total / sum(len(logits_NV) for logits_NV in reference), 0.0)


def _snr_db(clean: Sequence[Tensor], noisy: Sequence[Tensor]) -> float:
    signal = sum(float(c.double().square().sum()) for c in clean)
    noise = sum(float((c - n).double().square().sum()) for c, n in zip(clean, noisy, strict=True))
    if noise == 0 or signal == 0:
        return _LARGEST_SNR_DB
    return min(10 * math.log10(signal / noise), _LARGEST_SNR_DB)


def _candidate(
    group: LinearGroup,
    precision: str,
    quantized: Mapping[str, QuantizedLinear],
    spec: ModelSpec,
    snr_db: float,
    kl: float | None,
) -> Candidate:
    shapes = expected_tensors(spec)
    weights = {name: shapes[f"{name}.weight"] for name in group.linears}
    size = sum(_size_bytes(quantized.get(name), shape) for name, shape in weights.items())
    return Candidate(module=group.name, precision=precision, size_bytes=size, snr_db=snr_db, kl=kl)


def _size_bytes(linear: QuantizedLinear | None, shape: tuple[int, ...]) -> int:
    """Bytes of quantized values, scales and zero points; of a linear that is not quantized, its weight in 16 bits."""
    if linear is None:
        return 2 * math.prod(shape)
    bits = 4 if linear.weight_type in ("int4", "uint4") else 8
    points = 0 if linear.zero_point is None else linear.zero_point.numel()
    return (linear.qweight.numel() + points) * bits // 8 + linear.scale.nbytes


def _fixed_bytes(spec: ModelSpec, modules: Sequence[LinearGroup]) -> int:
    chosen = {f"{linear}.weight" for group in modules for linear in group.linears}
    return sum(2 * math.prod(shape) for name, shape in expected_tensors(spec).items() if name not in chosen)
