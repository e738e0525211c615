"""How a target's engine holds its weights in the machine's memory: what a gate's memory is planned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from r1v_export import contract
from r1v_export.config import BuildConfig
from r1v_export.model_spec import ModelSpec
from r1v_export.targets import registry

GRAPH_OF: Mapping[str, str] = {
    "vision_embeddings": contract.VISION,
    "vision_block": contract.VISION,
    "vision_features": contract.VISION,
    "projector": contract.PROJECTOR,
    "decoder_layer": contract.DECODER,
    "head": contract.DECODER,
}
"""The contract's graph in which each block of a model is."""


@dataclass(frozen=True)
class HeldWeights:
    """Whatever it says nothing of counts as float32.

    Attributes:
        packed: 4-bit weights stay packed, and the embedding table in its file: `Target.packed_in_memory`.
        unpacks_whole_blocks: `Target.unpacks_whole_blocks`.
        graphs: those of the contract that the engine opens as graphs; PyTorch computes what is in no such graph.
        half_precision: graphs have weights of 16 bits, which a CPU widens to float32 when they are opened.
        rounded_head: the head has 8 bits: `NumericsSpec.rounds_head`.
        own_weights: whether the gate has the original model alone to compare with: `NumericsSpec.own_weights`.
        in_memory: whether the engine is on the CPU; a GPU's own memory is not counted.
    """

    packed: bool = False
    unpacks_whole_blocks: bool = False
    graphs: tuple[str, ...] = ()
    half_precision: bool = False
    rounded_head: bool = False
    own_weights: bool = False
    in_memory: bool = True

    @classmethod
    def of(cls, config: BuildConfig, target: str, spec: ModelSpec) -> HeldWeights:
        """Those of the engine that a build has for a target."""
        held = registry.get_target(target)
        numerics = held.numerics(config, spec)
        return cls(
            packed=held.packed_in_memory,
            unpacks_whole_blocks=held.unpacks_whole_blocks,
            graphs=held.graphs,
            half_precision=registry.compute_dtype(config) == "float16",
            rounded_head=numerics.rounds_head,
            own_weights=numerics.own_weights is not None,
            in_memory=config.device == "cpu",
        )

    def is_graph(self, block: str) -> bool:
        """Whether the engine computes a block, by its name, in a graph."""
        return GRAPH_OF[block] in self.graphs
