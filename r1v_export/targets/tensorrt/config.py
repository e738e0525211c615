"""What TensorRT engines are built for: the block of tensorrt or tensorrt-rtx in the build file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from r1v_export.strict import StrictModel

Tiles = Annotated[tuple[PositiveInt, PositiveInt], Field(description="fewest and most tiles")]


class TensorRTConfig(StrictModel):
    """GPUs, and the sizes that engines take. Sizes beyond the model's positions are cut to them."""

    sm: tuple[PositiveInt, ...] | Literal["current"] | None = None
    """Compute capabilities (89 is 8.9) that one engine serves, or `current`: the installed GPU. If omitted:
    current for tensorrt; Ada and consumer Blackwell (89, 120) for tensorrt-rtx."""
    tile_profiles: tuple[Tiles, ...] = ((1, 1), (2, 4), (5, 7), (8, 13), (14, 26))
    """Ranges of tiles of a run, each with kernels of its own; an image is up to 13 tiles, more are batches."""
    max_batch: PositiveInt = 4
    """Sequences that the decoder computes side by side."""
    capacity: PositiveInt = 8192
    """Tokens of a sequence, prompt and answer: slots of its cache, whose number an engine fixes."""
    max_prefill: PositiveInt = 2048
    """Tokens of a sequence that one step takes; longer prompts take several steps."""
    decode_profile: bool = False
    """Kernels of their own for steps of one token. An engine then holds fp16 and fp8 weights of the decoder twice."""
    strip: bool = False
    """Leave the weights out of the plans and refit them from the bundle's when an engine is opened."""

    @model_validator(mode="after")
    def _tile_profiles_leave_no_gap(self) -> TensorRTConfig:
        expected = 1
        for fewest, max in self.tile_profiles:
            if fewest != expected or max < fewest:
                raise ValueError(f"tile profiles must follow each other from 1 tile on; found {fewest} to {max}")
            expected = max + 1
        if expected == 1:
            raise ValueError("there must be at least one tile profile")
        return self
