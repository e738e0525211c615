"""A model as GPUs hold it: how it is quantized, what it computes in, and which GPU holds what.

Every layer of the language model is cut `tp` ways: query heads, key-value heads and intermediate features are shared
out. The embedding table is whole on every GPU of the first stage, the head is cut by rows on those of the last. The
vision tower and the projector are copied to every GPU, each of which encodes a share of the tiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from r1v_export.checkpoint.names import EMBED_TOKENS, LM_HEAD, expected_tensors
from r1v_export.config import Compute
from r1v_export.count import Count
from r1v_export.errors import UsageError
from r1v_export.model_spec import LanguageSpec, ModelSpec
from r1v_export.parallel import Parallel
from r1v_export.quantization.groups import layer_of
from r1v_export.quantization.kv_scales import CacheType
from r1v_export.quantization.recipe import Scheme
from r1v_export.quantization.sizes import BYTES_OF, tensor_bytes

CUT_ALONG_INPUTS = ("self_attn.o_proj", "mlp.down_proj")
"""Linears whose input features are shared out, their products summed over GPUs; of all others it is the outputs."""

_LANGUAGE = "language_model."


@dataclass(frozen=True)
class GpuModel:
    """A model as GPUs hold it.

    schemes: of every quantized linear.
    compute: what all other weights are stored in, and activations.
    kv_cache: what the key-value cache is stored in; `compute` if None.
    """

    spec: ModelSpec
    compute: Compute
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    kv_cache: CacheType | None = None
    parallel: Parallel = field(default_factory=Parallel)

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return BYTES_OF[self.compute]

    @property
    def cache_width(self) -> int:
        """Bytes of a number in the key-value cache."""
        return 1 if self.kv_cache else self.width

    @property
    def head_rows(self) -> int:
        """Rows of the language-model head on one GPU, padded so that each has as many."""
        return -(-self.spec.language.vocab_size // self.parallel.tp)

    @cached_property
    def stage_weight_bytes(self) -> list[tuple[float, float]]:
        """Bytes that a GPU of each pipeline stage holds: of vision tower and projector, and of the language model."""
        return [self._weight_bytes(stage) for stage in range(self.parallel.pp)]

    def _weight_bytes(self, stage: int) -> tuple[float, float]:
        """Of one stage. A tied head is a copy of the embedding table."""
        language = self.spec.language
        tensors = {**expected_tensors(self.spec), LM_HEAD: (language.vocab_size, language.hidden_size)}
        vision, in_language = 0.0, 0.0
        for name, shape in tensors.items():
            if not name.startswith(_LANGUAGE):
                vision += tensor_bytes(name, math.prod(shape), self.schemes, self.compute)
            elif self._is_of_stage(name, stage):
                in_language += tensor_bytes(name, self._share(name, shape), self.schemes, self.compute)
        return vision, in_language

    def _is_of_stage(self, name: str, stage: int) -> bool:
        """Whether a tensor of the language model is on a pipeline stage: layers in turn, head and last norm at the
        end."""
        place = layer_of(name)
        if place is not None:
            return place[1] in self.parallel.layers(stage, self.spec.language.num_layers)
        return stage == (0 if name == EMBED_TOKENS else self.parallel.pp - 1)

    def _share(self, name: str, shape: tuple[int, ...]) -> int:
        """Parameters of a tensor of the language model on one GPU. Norms and the embedding table are whole."""
        if name == LM_HEAD:
            return self.head_rows * shape[1]
        is_cut = layer_of(name) is not None and "layernorm" not in name
        return math.prod(shape) // (self.parallel.tp if is_cut else 1)

    def check(self) -> None:
        """Check that the GPUs can share the model.

        Raises:
            UsageError: heads, features or quantization groups cannot be shared out so, or there are more stages than
                layers.
        """
        language, parallel = self.spec.language, self.parallel
        shared = {
            "attention heads": language.num_heads,
            "key-value heads": language.num_kv_heads,
            "intermediate features": language.intermediate_size,
        }
        for what, count in shared.items():
            if count % parallel.tp:
                fitting = [tp for tp in range(1, parallel.tp) if all(number % tp == 0 for number in shared.values())]
                raise UsageError(
                    f"{parallel.tp} GPUs cannot share this model's {what} evenly.",
                    where="--tp",
                    expected=f"a divisor of {', '.join(f'{number} {name}' for name, number in shared.items())}",
                    found=parallel.tp,
                    fix=f"--tp {fitting[-1]}",
                )
        if parallel.pp > language.num_layers:
            raise UsageError(
                "There are more pipeline stages than layers.",
                where="--pp",
                expected=f"at most {language.num_layers}",
                found=parallel.pp,
                fix=f"--pp {language.num_layers}, or fewer",
            )
        for name, scheme in self.schemes.items():
            if name.endswith(CUT_ALONG_INPUTS) and name.startswith(_LANGUAGE):
                self._check_groups(name, scheme)

    def _check_groups(self, name: str, scheme: Scheme) -> None:
        size, in_features = scheme.weights.group_size, _in_features(self.spec.language, name)
        if size is not None and in_features // self.parallel.tp % size:
            raise UsageError(
                "A quantization group would be split across two GPUs.",
                where=f"{name} with --tp {self.parallel.tp}",
                expected=f"input features of each GPU in whole groups of {size}",
                found=f"{in_features // self.parallel.tp} of {Count(in_features, 'input feature')} on each",
                fix="a smaller --tp, or a smaller group_size in the recipe",
            )


def _in_features(language: LanguageSpec, name: str) -> int:
    return language.intermediate_size if name.endswith("down_proj") else language.num_heads * language.head_dim
