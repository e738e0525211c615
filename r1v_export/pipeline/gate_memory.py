"""What a parity gate holds in memory at once, and which of the two kinds this machine can run.

Of a whole gate: the float32 reference, while it is fake-quantized also its unpacked qweight, the engine, and what both
compute. Of a streamed gate: one block of either, see `streamed_gate_memory`. Pages of files that the kernel gives back
do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from r1v_export.checkpoint.names import EMBED_TOKENS, LM_HEAD, expected_tensors
from r1v_export.config import GateMode, ParityConfig
from r1v_export.errors import CapabilityError
from r1v_export.memory import available_bytes
from r1v_export.model_spec import ModelSpec
from r1v_export.parity.boundaries import TILES_AT_ONCE
from r1v_export.pipeline.estimate import positions, question_tokens
from r1v_export.pipeline.held_weights import HeldWeights
from r1v_export.pipeline.streamed_gate_memory import PACKED_BYTES, PROCESS_BYTES, ROUNDED_BYTES, StreamedMemory
from r1v_export.pipeline.workers import found_memory
from r1v_export.progress import size
from r1v_export.quantization.recipe import Scheme

_FLOAT_BYTES = 4
_SAMPLES_TOGETHER = 16


@dataclass(frozen=True)
class GateMemory:
    """Bytes that each kind of gate takes, and bytes of the disk of a streamed one."""

    whole: int
    streamed: int
    spilled: int = 0

    def choose(self, wanted: GateMode, can_stream: bool, available: int | None = None) -> Literal["whole", "streamed"]:
        """`whole` or `streamed`: what is wanted, otherwise whole where it fits.

        Args:
            can_stream: whether the target's engines can be held a block at a time.
            available: bytes that a cluster's smallest worker can still take; this process if omitted.

        Raises:
            CapabilityError: it does not fit into memory, or the target's engines cannot be held a block at a time.
        """
        worker_bytes, available = available, available_bytes() if available is None else available
        if wanted == "streamed" and not can_stream:
            raise CapabilityError(
                "This target's engines cannot be held a block at a time.",
                where="--gate streamed",
                fix="pass --gate whole" if self.whole <= available else self._elsewhere,
            )
        if wanted == "auto":
            wanted = "streamed" if can_stream and self.whole > available else "whole"
        needed = self.whole if wanted == "whole" else self.streamed
        if needed > available:
            fix = self._elsewhere
            if wanted == "whole" and can_stream and self.streamed <= available:
                fix = f"pass --gate streamed, which takes {size(self.streamed)}"
            raise CapabilityError(
                f"The {wanted} parity gate does not fit into memory.",
                where="float32 reference and engine together" if wanted == "whole" else "one block of the model",
                expected=f"{size(needed)} of free memory",
                found=found_memory(available, worker_bytes),
                fix=fix,
            )
        return wanted

    @property
    def _elsewhere(self) -> str:
        """What to do where nothing fits."""
        return (
            "build with --no-parity, and run `r1v-export check` on a machine with "
            f"{size(self.whole)} of free memory; docs/parity.md lists the targets with a gate in less"
        )


def gate_memory(spec: ModelSpec, schemes: Mapping[str, Scheme], parity: ParityConfig, held: HeldWeights) -> GateMemory:
    """What the gates of a build hold in the machine's memory; a GPU's own is not counted.

    Args:
        schemes: of every quantized linear.
        held: how the engine holds its weights.
    """
    counts = {name: math.prod(shape) for name, shape in expected_tensors(spec).items()}
    if spec.language.tie_word_embeddings:
        counts[LM_HEAD] = counts[EMBED_TOKENS]
    quantized = {f"{linear}.weight": scheme for linear, scheme in schemes.items()}
    reference = {name: _FLOAT_BYTES * count for name, count in counts.items()}
    value_bytes = _engine_bytes(counts, quantized, held)
    engine = sum(round(value_bytes[name] * counts[name]) for name in value_bytes)
    shared = reference[LM_HEAD] if spec.language.tie_word_embeddings else 0
    whole = sum(reference.values()) - shared + engine + sum(counts[name] for name in quantized)
    streamed = StreamedMemory(spec, schemes, parity, held)
    whole += _whole_activations(spec, parity) + PROCESS_BYTES
    return GateMemory(whole=whole, streamed=streamed.peak, spilled=streamed.spilled)


def _engine_bytes(names: Iterable[str], quantized: Mapping[str, Scheme], held: HeldWeights) -> dict[str, float]:
    """Bytes that an open engine holds of each value of a weight, by its name.

    Args:
        names: of all weights.
        quantized: schemes by the weight's name.
    """
    if not held.in_memory:
        return {}
    packed = {name for name, scheme in quantized.items() if held.packed and "4" in scheme.weights.type}
    found = {name: PACKED_BYTES if name in packed else _FLOAT_BYTES for name in names}
    if held.packed:
        found.pop(EMBED_TOKENS, None)  # rows are taken from the file
    if held.rounded_head and LM_HEAD not in quantized:
        found[LM_HEAD] = ROUNDED_BYTES
    return found


def _whole_activations(spec: ModelSpec, parity: ParityConfig) -> int:
    language, batch = spec.language, min(parity.questions, _SAMPLES_TOGETHER)
    tokens = question_tokens(spec) + parity.max_new_tokens
    cache = 2 * language.num_layers * language.num_kv_heads * language.head_dim * tokens * _FLOAT_BYTES
    logits = 6 * language.vocab_size * 8
    return batch * (3 * cache + logits) + _tower(spec, TILES_AT_ONCE)


def _tower(spec: ModelSpec, tiles: int) -> int:
    """Within a ViT block; engines may hold attention scores, of two tiles at a time."""
    vision, scores = spec.vision, 2 * spec.vision.num_heads * positions(spec) ** 2
    block = tiles * positions(spec) * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    return (block + scores) * _FLOAT_BYTES
