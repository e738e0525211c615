"""The model as a chain of blocks, each small enough to be held alone: what calibration streams samples through.

    pixels -> vision embeddings -> ViT blocks -> projector -> token embeddings -> decoder layers -> head

A block is made of the reference's own modules, computes in float, and takes one sample at a time: what a sample gives
does not depend on its neighbors, so a shard computes the same numbers as the whole set does.
Shape letters as in `reference`: T tiles, P positions, N tokens per tile, S sequence, E hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import EMBED_TOKENS
from r1v_export.config import Matmul
from r1v_export.errors import CheckpointError
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.calibration.dataset import CalibrationSample
from r1v_export.quantization.calibration.matmul_precision import BFloat16Linear, use_bfloat16_linears
from r1v_export.quantization.groups import LM_HEAD_LINEAR, LinearGroup, linear_groups
from r1v_export.quantization.kv_scales import key_name, value_name
from r1v_export.quantization.quantized_linear import all_finite
from r1v_export.quantization.statistics.collector import Outputs
from r1v_export.reference import operators, vision
from r1v_export.reference.embed import Embed
from r1v_export.reference.language import CacheStep, DecoderLayer, Rotary, rotary_tables
from r1v_export.reference.projector import Projector

TILES_AT_ONCE = 4
"""Tiles that go through the vision tower together; bounds the memory of its activations."""


class Block(ABC):
    """One link of the chain.

    Attributes:
        name: that of its module in the checkpoint.
        groups: what can be quantized in it; none in embeddings.
    """

    def __init__(self, name: str, spec: ModelSpec) -> None:
        self.name, self.spec = name, spec
        self.groups: tuple[LinearGroup, ...] = tuple(group for group in linear_groups(spec) if group.block == name)

    @abstractmethod
    def build(self) -> nn.Module:
        """The module, its weights still to come."""

    @abstractmethod
    def forward(self, module: nn.Module, sample: CalibrationSample, x: Tensor | None) -> Tensor:
        """A sample's way through the block, on the module's device.

        Args:
            module: of `materialize`.
            sample: for what does not come out of the block before: pixels and tokens.
            x: output [..., hidden] of the previous block, on the CPU; None for the first block.
        """

    def checkpoint_name(self, parameter: str) -> str:
        """The checkpoint's name of one of the module's tensors, or of a linear in it."""
        return f"{self.name}.{parameter}"

    def module_name(self, checkpoint_name: str) -> str:
        """The inverse of `checkpoint_name`."""
        return checkpoint_name.removeprefix(f"{self.name}.")

    def collected_outputs(self) -> Outputs:
        """Outputs whose statistics are collected in addition to those of the groups' inputs."""
        return {}

    def rows(self, tokens: int, tiles: int) -> int:
        """How many vectors a sample of so many tokens and tiles sends through the block's linears."""
        return tokens


def blocks(spec: ModelSpec) -> list[Block]:
    """Every block of a model in the order of the data flow."""
    return [
        VisionEmbeddings("vision_model.embeddings", spec),
        *(VisionBlock(f"vision_model.encoder.layers.{i}", spec) for i in range(spec.vision.num_layers)),
        ProjectorBlock("mlp1", spec),
        TokenEmbeddings("language_model.model", spec),
        *(DecoderBlock(f"language_model.model.layers.{i}", spec) for i in range(spec.language.num_layers)),
        Head(LM_HEAD_LINEAR, spec),
    ]


def stored_tensors(block: Block, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A block's tensors by checkpoint name, in the dtype that they are stored in: maps of their file, where they are
    read once they are used. What rounding to nearest needs, and a quarter to a half of the memory of a module."""
    with torch.device("meta"):
        names = [block.checkpoint_name(parameter) for parameter in block.build().state_dict()]
    return {name: checkpoint.read(name) for name in names}


def tensors_of(block: Block, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a block's module by checkpoint name."""
    return {block.checkpoint_name(parameter): tensor for parameter, tensor in module.state_dict().items()}


def materialize(
    block: Block, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, matmul: Matmul = "float32"
) -> nn.Module:
    """A block's module with its weights, read from the checkpoint.

    Args:
        matmul: with `bfloat16` the weights of linears, which are stored so, stay maps of their file.
    """
    with torch.device("meta"):
        module = block.build()
        if matmul == "bfloat16":
            use_bfloat16_linears(module)
    embeddings = isinstance(block, TokenEmbeddings)
    as_stored = {f"{name}.weight" for name, child in module.named_modules() if isinstance(child, BFloat16Linear)}
    weights = {}
    for parameter in module.state_dict():
        name = block.checkpoint_name(parameter)
        # The embedding table stays a map of its file, whose pages the kernel gives back: rows are taken from it.
        weights[parameter] = checkpoint.read(name)
        if not embeddings and parameter not in as_stored:
            weights[parameter] = weights[parameter].to(device, dtype)
    module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(False)


def require_finite_weights(block: Block, module: nn.Module) -> None:
    """For a block in which an activation is NaN or infinite.

    Raises:
        CheckpointError: so is one of its weights.
    """
    for name, weight in tensors_of(block, module).items():
        if not all_finite(weight):
            raise CheckpointError(
                "A weight is NaN or infinite.",
                where=name,
                expected="finite numbers",
                fix="download or copy the checkpoint again",
            )


class VisionEmbeddings(Block):
    """Pixels -> [T, P, E]."""

    def build(self) -> nn.Module:
        return vision.Embeddings(self.spec)

    def forward(self, module: nn.Module, sample: CalibrationSample, x: Tensor | None) -> Tensor:
        return _in_chunks(module, torch.from_numpy(sample.pixels()))


class VisionBlock(Block):
    """[T, P, E] -> [T, P, E]."""

    def build(self) -> nn.Module:
        return vision.Block(self.spec.vision)

    def rows(self, tokens: int, tiles: int) -> int:
        return tiles * (1 + self.spec.tile_patches**2)

    def forward(self, module: nn.Module, sample: CalibrationSample, x: Tensor | None) -> Tensor:
        return _in_chunks(module, _required(x))


class ProjectorBlock(Block):
    """[T, P, E] -> image embeddings [T, N, E], the pixel shuffle before included."""

    def __init__(self, name: str, spec: ModelSpec) -> None:
        super().__init__(name, spec)
        with torch.device("meta"):
            self._to_features = vision.VisionModel(spec).to_features

    def build(self) -> nn.Module:
        return Projector(self.spec.projector)

    def rows(self, tokens: int, tiles: int) -> int:
        return tiles * self.spec.tokens_per_tile

    def forward(self, module: nn.Module, sample: CalibrationSample, x: Tensor | None) -> Tensor:
        return _in_chunks(module, self._to_features(_required(x)))


class TokenEmbeddings(Block):
    """Image embeddings [T, N, E] and the sample's tokens -> [1, S, E]. Computed on the CPU."""

    def build(self) -> nn.Module:
        language = self.spec.language
        # nn.Embedding's own constructor would draw random numbers, which on "meta" imports torch's compiler first.
        table = nn.Embedding.from_pretrained(torch.empty(language.vocab_size, language.hidden_size))
        return Embed(table, self.spec.image_token_id)

    def checkpoint_name(self, parameter: str) -> str:
        assert parameter == "embed_tokens.weight"
        return EMBED_TOKENS

    def forward(self, module: nn.Module, sample: CalibrationSample, x: Tensor | None) -> Tensor:
        # Where the table is narrower than the image embeddings, the sum of both takes the embeddings' dtype.
        embeds_BSE: Tensor = module(torch.tensor([sample.token_ids]), _required(x).flatten(0, 1))
        return embeds_BSE.to(_required(x).dtype)


class DecoderBlock(Block):
    """[1, S, E] -> [1, S, E], attending causally over the whole sequence."""

    def build(self) -> nn.Module:
        return DecoderLayer(self.spec.language)

    def forward(self, module: nn.Module, sample: CalibrationSample, x: Tensor | None) -> Tensor:
        h_1SE = _to_module(module, _required(x))
        output_1SE: Tensor = module(h_1SE, self._rotary(h_1SE), _whole_sequence(h_1SE), None)[0]
        return output_1SE

    def collected_outputs(self) -> Outputs:
        return {
            "self_attn.k_proj": (key_name(self.name), self._cached_keys),
            "self_attn.v_proj": (value_name(self.name), lambda v_BSE: v_BSE),
        }

    def _cached_keys(self, k_BSE: Tensor) -> Tensor:
        """Keys as the cache holds them: after the rotary embedding, which starts at position 0."""
        k_BKSD = k_BSE.unflatten(-1, (-1, self.spec.language.head_dim)).transpose(1, 2)
        positions_BS = _whole_sequence(k_BSE).position_ids
        rotated_BKSD = operators.rotary_embedding(k_BKSD, *self._rotary(k_BSE), positions_BS)
        return rotated_BKSD.transpose(1, 2).flatten(2)

    def _rotary(self, x_BSE: Tensor) -> Rotary:
        cos, sin = rotary_tables(self.spec.language, x_BSE.shape[1])
        return Rotary(cos.to(x_BSE.device), sin.to(x_BSE.device))


class Head(Block):
    """[1, S, E] -> logits [1, S, vocab], the final norm included."""

    def build(self) -> nn.Module:
        language = self.spec.language
        norm = vision.RMSNorm(language.hidden_size, language.rms_norm_eps)
        linear = nn.Linear(language.hidden_size, language.vocab_size, bias=False)
        return nn.Sequential(norm, linear)

    def checkpoint_name(self, parameter: str) -> str:
        return {"0.weight": "language_model.model.norm.weight", "1.weight": f"{LM_HEAD_LINEAR}.weight"}[parameter]

    def module_name(self, checkpoint_name: str) -> str:
        assert checkpoint_name == LM_HEAD_LINEAR
        return "1"

    def forward(self, module: nn.Module, sample: CalibrationSample, x: Tensor | None) -> Tensor:
        logits: Tensor = module(_to_module(module, _required(x)))
        return logits


def _required(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _to_module(module: nn.Module, x: Tensor) -> Tensor:
    weight = next(module.parameters())
    return x.to(weight.device, weight.dtype)


def _in_chunks(module: nn.Module, x: Tensor) -> Tensor:
    """A module over [T, ...], a few tiles at a time; a sample without images has none and gives none."""
    chunks = [module(_to_module(module, chunk)) for chunk in x.split(TILES_AT_ONCE)]
    return torch.cat(chunks)


def _whole_sequence(x_BSE: Tensor) -> CacheStep:
    """Every token of one sequence from position 0 on."""
    batch, seq = x_BSE.shape[:2]
    positions_BS = torch.arange(seq, device=x_BSE.device).expand(batch, -1)
    start_B = positions_BS.new_zeros(batch)
    return CacheStep(positions_BS, write_index=start_B, length=start_B + seq)
