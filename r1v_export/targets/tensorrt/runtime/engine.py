"""The contract's engine on TensorRT plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from r1v_export import contract
from r1v_export.contract import CacheLimits
from r1v_export.errors import BundleError
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.embed import Embed
from r1v_export.targets.tensorrt.build.profiles import BATCH, LOGIT_POSITIONS, VISION_SYMBOL
from r1v_export.targets.tensorrt.device import copy
from r1v_export.targets.tensorrt.runtime.decoder import TensorRTDecoder
from r1v_export.targets.tensorrt.runtime.session import DTYPES, Session


class TensorRTEngine:
    """Runs a bundle's plans. A plan is loaded when it is first needed.

    Args:
        name: of the target.
        load: makes the session of a plan.
        embed_graph: the bundle's standard embed graph, whose table is mapped and looked up in on the CPU.
    """

    def __init__(self, name: str, spec: ModelSpec, load: Callable[[str], Session], embed_graph: Path) -> None:
        self.name, self.spec, self.sizes = name, spec, spec.sizes
        self._load, self._embed_graph = load, embed_graph
        self._joined: tuple[np.ndarray, np.ndarray] | None = None

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        """Features of all tiles [tiles, 3, size, size]; more tiles than the plan takes run in several calls. The plan
        also computes the projector's result, which `projector` returns for these features."""
        max = self._vision.max[VISION_SYMBOL]
        parts = [
            self._run(self._vision, {contract.PIXEL_VALUES: pixel_values[start : start + max]})
            for start in range(0, len(pixel_values), max)
        ]
        features, embeds = (
            np.concatenate([part[name] for part in parts]) for name in (contract.VISION_FEATURES, contract.IMAGE_EMBEDS)
        )
        self._joined = features, embeds
        return features

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        if self._joined is not None and self._joined[0] is vision_features:
            return self._joined[1]
        max = self._projector.max[VISION_SYMBOL]
        return np.concatenate(
            [
                self._run(self._projector, {contract.VISION_FEATURES: vision_features[start : start + max]})[
                    contract.IMAGE_EMBEDS
                ]
                for start in range(0, len(vision_features), max)
            ]
        )

    def embed(self, input_ids: np.ndarray, image_embeds: np.ndarray) -> np.ndarray:
        dtype = next(self._embed.parameters()).dtype
        images = torch.from_numpy(np.ascontiguousarray(image_embeds)).to(dtype)
        with torch.inference_mode():
            embeds: Tensor = self._embed(torch.from_numpy(np.ascontiguousarray(input_ids)), images)
        return embeds.float().numpy()

    def decoder(self, batch: int, capacity: int) -> TensorRTDecoder:
        return TensorRTDecoder(self._decoder, self.sizes, batch, capacity)

    def cache_limits(self) -> CacheLimits:
        past = next(binding for binding in self._decoder.info.inputs if binding.name == contract.past_key(0))
        sizes, slots = self.sizes, past.shape[2]
        assert isinstance(slots, int)
        slot_bytes = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * DTYPES[past.dtype].itemsize
        return CacheLimits(slot_bytes, self._decoder.max[BATCH], slots, self._decoder.max[LOGIT_POSITIONS])

    @cached_property
    def _vision(self) -> Session:
        return self._load(contract.VISION)

    @cached_property
    def _projector(self) -> Session:
        return self._load(contract.PROJECTOR)

    @cached_property
    def _decoder(self) -> Session:
        return self._load(contract.DECODER)

    @cached_property
    def _embed(self) -> Embed:
        embedding = nn.Embedding.from_pretrained(mapped_table(self._embed_graph), freeze=True)
        return Embed(embedding, self.spec.image_token_id)

    @staticmethod
    def _run(session: Session, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output, float32, of a plan over tiles."""
        sizes = {VISION_SYMBOL: len(next(iter(arrays.values())))}
        tensors: dict[str, Tensor] = {}
        for binding in session.info.inputs:
            tensors[binding.name] = session.empty(binding, sizes)
            copy(torch.from_numpy(np.ascontiguousarray(arrays[binding.name])), tensors[binding.name])
        outputs = session.outputs(sizes, [binding.name for binding in session.info.outputs])
        session.prepare({**tensors, **outputs}, sizes)()
        return {name: tensor.float().cpu().numpy() for name, tensor in outputs.items()}


def mapped_table(embed_graph: Path) -> Tensor:
    """The embedding table [vocab, hidden] of the embed graph, mapped from the bundle's file: only rows that are looked
    up are read.

    Raises:
        BundleError: the graph or its weights are missing or malformed.
    """
    try:
        tensors = [value.const_value for value in ir.load(embed_graph).graph.initializers.values()]
        external = next(tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor))
        shape, dtype = tuple(external.shape.numpy()), DTYPES[_torch_name(external.dtype)]
        path = embed_graph.parent / external.location
        mapped = np.memmap(path, np.uint8, mode="c", offset=external.offset or 0, shape=(external.nbytes,))
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise BundleError(
            "The bundle's embeddings cannot be read.", where=embed_graph, found=error, fix="build the bundle again"
        ) from error
    return torch.from_numpy(mapped).view(dtype).view(shape)


def _torch_name(dtype: ir.DataType) -> str:
    return {"FLOAT": "float32"}.get(dtype.name, dtype.name.lower())
