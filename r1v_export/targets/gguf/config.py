"""The block of a build file for GGUF files."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from r1v_export.strict import StrictModel

ModelType = Literal["Q8_0", "Q4_K_M"]
MmprojType = Literal["F16", "Q8_0"]


class GgufConfig(StrictModel):
    """Which files are written, and in which types. What a recipe quantizes keeps its quantized values in any case."""

    files: Literal["both", "model", "mmproj"] = "both"
    """`model.gguf` and `mmproj.gguf`, or one of them, which answers no question alone: such a build has no parity
    gate."""
    model: ModelType | None = None
    """Type of the language model's matrices that no recipe quantizes, embeddings and head included, by the rules of
    llama.cpp's own quantizer; the precision's if omitted."""
    mmproj: MmprojType | None = None
    """Likewise of the vision tower and the projector."""

    @model_validator(mode="after")
    def _types_are_of_files_that_are_written(self) -> GgufConfig:
        types = {"model": self.model, "mmproj": self.mmproj}
        for file, kind in types.items():
            if kind is not None and self.files not in ("both", file):
                raise ValueError(f"files: {self.files} does not write {file}.gguf, whose type is {kind} here")
        return self
