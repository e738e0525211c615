"""The vision graph: pixel_values -> vision_features."""

from __future__ import annotations

from torch import Tensor

from r1v_export.contract import VISION_EMBEDDINGS, vision_block
from r1v_export.exporters.graph import GraphSource, Read
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.vision import VisionModel, resize_position_embedding

PREFIX = "vision_model."
POSITION_EMBEDDING = PREFIX + "embeddings.position_embedding"


def source(spec: ModelSpec) -> GraphSource:
    """The position embedding is resized to the tile's patch grid here, once, so that the graph just adds it."""

    def resized_position_embedding(read: Read) -> Tensor:
        return resize_position_embedding(read(POSITION_EMBEDDING), spec.tile_patches)

    on_grid = spec.vision.model_copy(update={"image_size": spec.tiling.tile_size})
    return GraphSource(
        module=lambda: VisionModel(spec.model_copy(update={"vision": on_grid})),
        prefix=PREFIX,
        derived={POSITION_EMBEDDING: resized_position_embedding},
        value_names={f"{PREFIX}embeddings": VISION_EMBEDDINGS}
        | {f"{PREFIX}encoder.layers.{i}": vision_block(i) for i in range(spec.vision.num_layers)},
    )
