"""Which type llama.cpp's own quantizer gives each matrix, where no recipe quantizes it.

The rules are those of llama.cpp (src/llama-quant.cpp: `llama_tensor_get_type` and its fallbacks) for the architecture
Qwen2. Q4_K_M is Q4_K with Q6_K where quantizing costs most: the head, and the values and down projections of the first
and the last eighth of the layers and of every third between them.
"""

from __future__ import annotations

from r1v_export.targets.gguf.config import MmprojType, ModelType
from r1v_export.targets.gguf.write.types import BLOCK, SUPER_BLOCK, GgufType

EMBEDDING, HEAD = "token_embd.weight", "output.weight"

_LAYERS_OF_70B = 80
"""llama.cpp knows Qwen2 of 70B and more by its layers: their value projections are small next to the rest."""

_FALLBACK: dict[GgufType, GgufType] = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""For rows that are no multiple of 256."""


def own_type(name: str, columns: int, wanted: ModelType | MmprojType, layers: int, *, tied: bool = False) -> GgufType:
    """The type of a matrix of a file in the type `wanted`.

    Args:
        name: GGUF's.
        columns: length of its rows.
        layers: of the language model.
        tied: whether the token embedding is the head too.
    """
    kind = _q4_k_m(name, layers, tied) if wanted == "Q4_K_M" else wanted
    if columns % SUPER_BLOCK:
        kind = _FALLBACK.get(kind, kind)
    return "F16" if columns % BLOCK else kind


def takes_more_bits(layer: int, layers: int) -> bool:
    """Whether values and down projection of a layer are Q6_K in a Q4_K_M file."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _q4_k_m(name: str, layers: int, tied: bool) -> GgufType:
    if name == HEAD or (tied and name == EMBEDDING):
        return "Q6_K"
    if name.endswith((".attn_v.weight", ".ffn_down.weight")):
        if takes_more_bits(int(name.split(".")[1]), layers):
            return "Q6_K"
        if layers == _LAYERS_OF_70B and name.endswith(".attn_v.weight"):
            return "Q5_K"
    return "Q4_K"
