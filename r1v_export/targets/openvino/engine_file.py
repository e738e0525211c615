"""What opening an engine takes beyond its graphs: `engine.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from r1v_export.config import ImageProducts
from r1v_export.errors import BundleError
from r1v_export.files import read_regular_bytes
from r1v_export.strict import StrictModel, parse_json
from r1v_export.targets.openvino.config import OpenVinoConfig

ENGINE_FILE = "engine.json"
REBUILD = "build the bundle again"
LEAST_GROUP = 32
"""Inputs that share a scale where they are rounded to 8 bits, at least: OpenVINO's own default."""

ElementType = Literal["f32", "f16", "bf16", "i64", "i32", "i8", "u8", "i4", "u4", "f8e4m3"]
"""Types of elements, by OpenVINO's names."""

_BITS: Mapping[ElementType, int] = {
    "f32": 32, "f16": 16, "bf16": 16, "i64": 64, "i32": 32, "i8": 8, "u8": 8, "i4": 4, "u4": 4, "f8e4m3": 8,
}  # fmt: skip


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\0" in path or "\\" in path:
        raise ValueError("a path inside the bundle")
    return path


class Weight(StrictModel):
    """A tensor, as its bytes lie in a file."""

    file: Annotated[str, AfterValidator(_inside)]
    """Path in the bundle."""
    offset: NonNegativeInt
    size_bytes: NonNegativeInt
    type: ElementType
    shape: tuple[NonNegativeInt, ...]

    @model_validator(mode="after")
    def _has_the_size_of_its_shape(self) -> Weight:
        # Else OpenVINO would read memory behind the file.
        expected = -(-math.prod(self.shape) * _BITS[self.type] // 8)
        if self.size_bytes != expected:
            raise ValueError(f"size_bytes is {expected} for this shape and type")
        return self


GraphWeights: TypeAlias = dict[str, Weight]
"""Input of a graph -> the weight that it is."""


class EngineFile(StrictModel):
    """How an engine's graphs are opened."""

    options: OpenVinoConfig
    """Of the build."""
    weights: dict[str, GraphWeights]
    """Of each graph."""
    input_groups: dict[str, PositiveInt] = Field(default_factory=dict)
    """Of each graph with 4-bit weights: how many of their inputs share a scale where they are rounded to 8 bits;
    `LEAST_GROUP` where it is not said."""
    paged: bool = False
    """The decoder's cache is a pool of blocks."""
    image_products: tuple[ImageProducts, ...] = ("bfloat16",)
    """What float32 products of images may round their operands to, the fastest first."""

    def weights_bytes(self, graph: str) -> int:
        """What a graph's weights take in their files."""
        return sum(weight.size_bytes for weight in self.weights.get(graph, {}).values())

    @property
    def steps_in_8_bits(self) -> bool:
        """Whether it decodes over a pool of blocks, with inputs of 4-bit weights in 8 bits."""
        return self.paged and self.options.int4_inputs == "int8"


def read_engine_file(engine: Path) -> EngineFile:
    """Read an engine's `engine.json`.

    Raises:
        BundleError: it is missing or malformed.
    """
    path, what = engine / ENGINE_FILE, "An OpenVINO engine cannot be used"
    try:
        content = read_regular_bytes(path)
    except OSError as error:
        raise BundleError(f"{what}.", where=path, found=error, fix=REBUILD) from error
    return parse_json(EngineFile, content, BundleError, what, where=path, fix=REBUILD)
