"""What a model is judged on: one large image, its prompt, and one more token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from r1v_export import contract
from r1v_export.count import Count
from r1v_export.errors import BundleError
from r1v_export.files import require_regular
from r1v_export.model_spec import ModelSpec
from r1v_export.roofline.counts import LENGTH, Cost, count

_TEXT_TOKENS = 64
"""Of a question around its image."""


@dataclass(frozen=True)
class Workload:
    """One step of answering: graphs that run one after the other, and the sizes of their symbols."""

    name: str
    graphs: tuple[str, ...]
    sizes: dict[str, int]

    def costs(self, folder: Path) -> list[Cost]:
        """Counted in the standard graphs of a bundle.

        Raises:
            BundleError: a graph is missing or unreadable.
        """
        return [cost for graph in self.graphs for cost in count(_load(folder / f"{graph}.onnx"), self.sizes)]


def workloads(spec: ModelSpec, context: int | None = None) -> list[Workload]:
    """Vision, prefill and one step of decoding for an image of as many tiles as the model allows.

    Args:
        context: tokens before the step of decoding; those of the prompt if omitted.
    """
    tiles = spec.tiling.max_tiles_per_image
    positions = spec.language.max_position_embeddings
    prompt = min(tiles * spec.tokens_per_tile + _TEXT_TOKENS, positions)
    length = min(context or prompt + 1, positions)
    step = {"batch": 1, "logit_positions": 1, "capacity": positions}
    return [
        Workload(f"vision, {Count(tiles, 'tile')}", (contract.VISION, contract.PROJECTOR), {"tiles": tiles}),
        Workload(f"prefill, {Count(prompt, 'token')}", (contract.DECODER,), {**step, "seq": prompt, LENGTH: prompt}),
        Workload(
            f"decode, one token at a context of {length}", (contract.DECODER,), {**step, "seq": 1, LENGTH: length}
        ),
    ]


def _load(path: Path) -> ir.Model:
    try:
        require_regular(path)
        return ir.load(path)
    except Exception as error:  # a missing file, or whatever protobuf makes of another one
        raise BundleError(
            "A graph of the bundle cannot be read.", where=path, found=error, fix="r1v-export verify BUNDLE"
        ) from error
