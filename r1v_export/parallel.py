"""A model shared by GPUs: tensor parallel inside a layer, pipeline parallel over layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parallel:
    """`tp` GPUs share each layer, `pp` groups of them share the layers."""

    tp: int = 1
    pp: int = 1

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return self.tp * self.pp

    def layers(self, stage: int, count: int) -> range:
        """The layers of a pipeline stage; the first stages have one more where `pp` does not divide their number."""
        size, more = divmod(count, self.pp)
        start = stage * size + min(stage, more)
        return range(start, start + size + (stage < more))
