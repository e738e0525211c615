"""The bytes of each planned tensor, made when it is written."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.gguf.names import CLASS, POSITION
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.reference.vision import resize_position_embedding
from r1v_export.targets.gguf.check_model import needs_widening
from r1v_export.targets.gguf.write.blocks import Blocks, blocks_of, encode_blocks, encode_plain
from r1v_export.targets.gguf.write.plan import PlannedTensor
from r1v_export.targets.gguf.write.tower import widen, widen_blocks, widening_of


class TensorEncoder:
    """Reads weights and quantized values, and encodes them."""

    def __init__(self, checkpoint: Checkpoint, artifact: Artifact | None) -> None:
        self.checkpoint, self.artifact, self.spec = checkpoint, artifact, checkpoint.spec
        self._widens = needs_widening(self.spec)
        self._kept: tuple[str, Blocks] | None = None

    def encode(self, tensor: PlannedTensor) -> np.ndarray:
        """A tensor's bytes, uint8.

        Raises:
            UsageError: a number is too large for its type.
        """
        return self._plain(tensor) if tensor.linear is None else self._quantized(tensor, tensor.linear)

    def _plain(self, planned: PlannedTensor) -> np.ndarray:
        tensor = self._read(planned.canonical)
        if planned.canonical == POSITION:
            # llama.cpp puts the class token behind the patches, and adds this table as it is.
            tensor = resize_position_embedding(tensor, self.spec.tile_patches)[0].roll(-1, 0)
        elif planned.canonical == CLASS:
            tensor = tensor.flatten()
        rows = tensor.shape[0] // planned.parts
        tensor = tensor[planned.index * rows : (planned.index + 1) * rows]
        if self._widens_tensor(planned):
            tensor = widen(tensor, widening_of(planned.part), self.spec, self._projector_norm)
        return encode_plain(tensor, planned.kind, planned.name)

    def _quantized(self, planned: PlannedTensor, linear: str) -> np.ndarray:
        if self._kept is None or self._kept[0] != linear:  # its parts follow each other
            assert self.artifact is not None
            self._kept = (linear, blocks_of(self.artifact.linear(linear)))
        blocks = self._kept[1]
        rows = len(blocks.values) // planned.parts
        blocks = blocks.rows(slice(planned.index * rows, (planned.index + 1) * rows))
        if self._widens_tensor(planned):
            blocks = widen_blocks(blocks, widening_of(planned.part), self.spec, self._projector_norm)
        return encode_blocks(blocks, planned.name)

    def _widens_tensor(self, planned: PlannedTensor) -> bool:
        return self._widens and not planned.canonical.startswith("language_model.")

    def _read(self, canonical: str) -> Tensor:
        rewritten = self.artifact.overrides.get(canonical) if self.artifact else None
        return rewritten() if rewritten is not None else self.checkpoint.read(canonical)

    def _projector_norm(self) -> Tensor:
        return self._read("mlp1.0.weight")
