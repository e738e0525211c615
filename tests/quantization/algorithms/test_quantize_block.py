"""Whole blocks: quantized, put into the reference model, run."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import CheckpointError
from r1v_export.quantization.algorithms.clipping import clipped_params
from r1v_export.quantization.algorithms.gptq import compensation, gptq
from r1v_export.quantization.algorithms.quantize_block import quantize_block
from r1v_export.quantization.apply.torch import apply
from r1v_export.quantization.groups import LinearGroup, linear_groups
from r1v_export.quantization.kv_scales import key_name, value_name
from r1v_export.quantization.quantized_block import QuantizedBlock
from r1v_export.quantization.recipe import Scheme, load, parse, resolve
from r1v_export.quantization.statistics.activation_statistics import ActivationStatistics, BlockStatistics
from r1v_export.quantization.statistics.range_estimators import Observer
from r1v_export.reference.language import CacheStep, DecoderLayer, rotary_tables
from r1v_export.reference.model import Model

DECODER = "language_model.model.layers.1"
VIT = "vision_model.encoder.layers.1"
PROJECTOR = "mlp1"


@dataclass
class Block:
    """A block of a random model, inputs for it, and what is observed as they go through."""

    name: str
    checkpoint: Checkpoint
    module: nn.Module
    x: Tensor

    @property
    def groups(self) -> list[LinearGroup]:
        return [group for group in linear_groups(self.checkpoint.spec) if group.block == self.name]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {f"{self.name}.{name}": tensor for name, tensor in self.module.state_dict().items()}

    def run(self, module: nn.Module | None = None) -> Tensor:
        module = module or self.module
        if not isinstance(module, DecoderLayer):
            return module(self.x)
        batch, seq = self.x.shape[:2]
        positions_BS = torch.arange(seq).expand(batch, -1)
        start_B = torch.zeros(batch, dtype=torch.int64)
        rotary = rotary_tables(self.checkpoint.spec.language, seq)
        return module(self.x, rotary, CacheStep(positions_BS, start_B, start_B + seq), None)[0]

    def inputs(self, module: nn.Module | None = None) -> dict[str, Tensor]:
        """What every site reads."""
        module, read = module or self.module, dict[str, Tensor]()
        hooks = [
            module.get_submodule(group.name.removeprefix(f"{self.name}.")).register_forward_pre_hook(
                lambda _, args, name=group.name: read.update({name: args[0]})
            )
            for group in self.groups
        ]
        self.run(module)
        for hook in hooks:
            hook.remove()
        return read

    @cached_property
    def statistics(self) -> BlockStatistics:
        read = {name: x.flatten(0, -2) for name, x in self.inputs().items()}
        activations = {name: ActivationStatistics.from_activations(x) for name, x in read.items()}
        if isinstance(self.module, DecoderLayer):
            activations |= {key_name(self.name): ActivationStatistics.from_activations(self.values("k_proj"))}
            activations |= {value_name(self.name): ActivationStatistics.from_activations(self.values("v_proj"))}
        return BlockStatistics(activations, {name: x.T @ x for name, x in read.items()})

    def values(self, linear: str, module: nn.Module | None = None) -> Tensor:
        """Output of a linear of the attention."""
        module, seen = module or self.module, []
        hook = module.get_submodule(f"self_attn.{linear}").register_forward_hook(lambda _, args, out: seen.append(out))
        self.run(module)
        hook.remove()
        return seen[0]

    def schemes(self, recipe: str) -> dict[str, Scheme]:
        return resolve(load(recipe) if "\n" not in recipe else parse(recipe), self.checkpoint.spec)

    def quantize(self, recipe: str, observer: Observer | None = None, **options: Any) -> QuantizedBlock:
        arguments = (self.groups, self.schemes(recipe), self.tensors, self.statistics, observer or Observer())
        return quantize_block(*arguments, **options)

    def quantized(self, result: QuantizedBlock) -> nn.Module:
        module = copy.deepcopy(self.module)
        apply(module, result.linears, result.overrides, f"{self.name}.")
        return module

    def error(self, recipe: str) -> float:
        """Relative error of the quantized block's own contribution to the residual stream."""
        change = self.run() - (0 if self.name == PROJECTOR else self.x)
        return float((self.run(self.quantized(self.quantize(recipe))) - self.run()).norm() / change.norm())


def make_block(checkpoint: Checkpoint, name: str) -> Block:
    """Random weights and biases; inputs and norms with channels of very different size, as trained models have."""
    torch.manual_seed(0)
    module = Model(checkpoint.spec).eval().requires_grad_(False).get_submodule(name)
    for parameter_name, parameter in module.named_parameters():
        if parameter.ndim == 1 and not parameter_name.startswith("ls"):
            spread = torch.randn_like(parameter).exp()
            parameter.copy_(spread / spread.square().mean().sqrt() * (0.1 if parameter_name.endswith("bias") else 1.0))
    width = checkpoint.spec.projector.in_features if name == PROJECTOR else 256
    mix = torch.randn(width, width) / width**0.5
    x = torch.randn(8, 64, width) @ mix + 0.3 * torch.randn(8, 64, width)
    return Block(name, checkpoint, module, x)


@pytest.fixture(scope="module")
def decoder(synth_checkpoint: Checkpoint) -> Block:
    return make_block(synth_checkpoint, DECODER)


@pytest.fixture(scope="module", params=[DECODER, VIT, PROJECTOR])
def block(request: pytest.FixtureRequest, synth_checkpoint: Checkpoint) -> Block:
    return make_block(synth_checkpoint, request.param)


def rule(scheme: str, modules: str = "*", more: str = "") -> str:
    return f"name: test\ndescription: test\nrules:\n  - {{modules: '{modules}', scheme: {scheme}}}\n{more}\n"


def weights(kind: str, algorithm: str, more: str = "") -> str:
    return f"{{weights: {{type: {kind}, granularity: group, group_size: 64, algorithm: {algorithm}{more}}}}}"


@pytest.mark.parametrize("recipe", ["fp8", "fp8-rowwise", "int8-smoothquant"])
def test_8_bit_blocks_stay_near_the_float_block(block: Block, recipe: str) -> None:
    result = block.quantize(recipe)
    assert set(result.linears) == {linear for group in block.groups for linear in group.linears}
    assert all(linear.validate() is None for linear in result.linears.values())
    assert block.error(recipe) < 0.08


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_awq_and_gptq_blocks_are_nearer_than_rounding_to_nearest_makes_them(block: Block, kind: str) -> None:
    nearest, awq, gptq = (block.error(rule(weights(kind, algorithm))) for algorithm in ("rtn", "awq", "gptq"))
    assert nearest < 0.15
    assert awq < 0.9 * nearest
    assert gptq < 0.9 * nearest


ORDERS = {order: weights("int4", "gptq", f", act_order: {order}") for order in ("none", "static", "group")}


def test_groups_in_activation_order_are_gptq_of_the_reordered_weight(decoder: Block) -> None:
    linears = decoder.quantize(rule(ORDERS["group"])).linears
    for group in decoder.groups:
        gram = decoder.statistics.grams[group.name]
        for name in group.linears:
            order = linears[name].input_order
            assert order is not None
            moved, weight = gram[order][:, order], decoder.tensors[f"{name}.weight"][:, order]
            expected = gptq(weight, clipped_params(weight, "int4", 64, moved), compensation(moved))
            assert torch.equal(linears[name].qweight, expected.qweight)
            assert torch.equal(linears[name].scale, expected.scale)
            assert torch.equal(linears[name].dequantize()[:, order], expected.dequantize())


@pytest.mark.parametrize("algorithm", ["awq", "gptq"])
def test_clipping_multiplies_in_what_calibration_multiplies_in(decoder: Block, algorithm: str) -> None:
    group = next(group for group in decoder.groups if group.name.endswith("down_proj"))
    name, gram = f"{group.linears[0]}.weight", decoder.statistics.grams[group.name]
    schemes = decoder.schemes(rule(weights("int4", algorithm)))
    made = quantize_block([group], schemes, decoder.tensors, decoder.statistics, Observer(), matmul="bfloat16")
    scale_I, products = made.smoothing.get(group.name), torch.bfloat16
    weight = decoder.tensors[name] if scale_I is None else decoder.tensors[name] * scale_I
    expected = clipped_params(weight, "int4", 64, gram, scale_I, products)
    assert torch.equal(made.linears[group.linears[0]].scale, expected.scale)
    assert not torch.equal(expected.scale, clipped_params(weight, "int4", 64, gram, scale_I).scale)


def test_linears_that_read_one_tensor_have_one_order(decoder: Block) -> None:
    linears = decoder.quantize(rule(ORDERS["group"])).linears
    for group in decoder.groups:
        first, *others = (linears[name].input_order for name in group.linears)
        assert all(torch.equal(first, other) for other in others)
        activation = decoder.statistics.grams[group.name].diagonal()[first].unflatten(0, (-1, 64))
        assert bool((activation[:-1].amin(1) >= activation[1:].amax(1)).all())


def test_only_groups_in_activation_order_have_an_order_of_their_own(block: Block) -> None:
    for order, scheme in ORDERS.items():
        result = block.quantize(rule(scheme))
        assert all((linear.input_order is not None) == (order == "group") for linear in result.linears.values())
        assert all(linear.validate() is None for linear in result.linears.values())
        assert all(scheme.has_input_order == (order == "group") for scheme in block.schemes(rule(scheme)).values())


def test_each_order_of_columns_is_nearer_than_rounding_to_nearest_makes_them(block: Block) -> None:
    nearest = block.error(rule(weights("int4", "rtn")))
    assert all(block.error(rule(scheme)) < 0.9 * nearest for scheme in ORDERS.values())


def test_smoothquant_blocks_are_nearer_than_int8_alone(block: Block) -> None:
    alone = rule("{weights: {type: int8, granularity: channel, algorithm: rtn}, inputs: {type: int8, mode: static}}")
    assert block.error("int8-smoothquant") < 0.9 * block.error(alone)


def test_awq_rewrites_the_norms_and_the_bias_that_its_scales_go_through(decoder: Block) -> None:
    result = decoder.quantize("int4-awq")
    names = ("input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.v_proj.bias")
    assert set(result.overrides) == {f"{DECODER}.{name}" for name in names}
    for name, tensor in result.overrides.items():
        assert tensor.shape == decoder.tensors[name].shape
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, decoder.tensors[name])


def test_a_linear_that_stays_in_16_bits_takes_up_scales_too(decoder: Block) -> None:
    result = decoder.quantize(rule(weights("int4", "awq"), modules="*.o_proj"))
    assert set(result.linears) == {f"{DECODER}.self_attn.o_proj"}
    assert set(result.overrides) == {f"{DECODER}.self_attn.v_proj.weight", f"{DECODER}.self_attn.v_proj.bias"}
    assert decoder.error(rule(weights("int4", "awq"), modules="*.o_proj")) < 0.1


@pytest.mark.parametrize("recipe", ["int4-rtn", "int4-gptq", "fp8"])
def test_other_algorithms_rewrite_nothing(decoder: Block, recipe: str) -> None:
    assert decoder.quantize(recipe).overrides == {}


def test_static_input_scales_are_those_of_what_the_quantized_block_reads(decoder: Block) -> None:
    """Also where AWQ has rescaled it: with the rewritten norms in place, the linears read the rescaled tensor."""
    result = decoder.quantize("w4a8")
    module = copy.deepcopy(decoder.module)
    apply(module, {}, result.overrides, f"{DECODER}.")
    first = {group.name: group for group in decoder.groups}[f"{DECODER}.self_attn.q_proj"]
    read = decoder.inputs(module)[first.name]
    for linear in first.linears:
        assert result.linears[linear].input_type == "fp8"
        assert float(result.linears[linear].input_scale) == pytest.approx(float(read.abs().max()) / 448, rel=1e-5)


def test_the_observer_chooses_the_range_of_static_inputs(decoder: Block) -> None:
    absmax, median = decoder.quantize("fp8"), decoder.quantize("fp8", Observer(kind="percentile", percentile=60))
    for name, linear in absmax.linears.items():
        assert linear.input_scale is not None
        assert median.linears[name].input_scale < 0.6 * linear.input_scale


def test_dynamic_inputs_and_plain_weights_need_no_statistics(decoder: Block) -> None:
    empty = BlockStatistics({}, {})
    for recipe in ("fp8-rowwise", "int4-rtn"):
        result = quantize_block(decoder.groups, decoder.schemes(recipe), decoder.tensors, empty, Observer())
        assert all(linear.input_scale is None for linear in result.linears.values())


def test_one_scale_per_tensor_is_shared_where_engines_fuse(decoder: Block) -> None:
    result = decoder.quantize(rule("{weights: {type: fp8, granularity: tensor, algorithm: rtn}}"))
    scales = {name.rpartition(".")[2]: linear.scale.unique() for name, linear in result.linears.items()}
    assert all(len(scale) == 1 for scale in scales.values())
    assert scales["q_proj"] == scales["k_proj"] == scales["v_proj"]
    assert scales["gate_proj"] == scales["up_proj"] != scales["down_proj"]


def test_cache_scales_cover_keys_and_the_values_that_awq_made_smaller(decoder: Block) -> None:
    plain = decoder.quantize("fp8", kv_cache="fp8").kv
    assert plain is not None
    assert plain.value == pytest.approx(float(decoder.values("v_proj").abs().max()) / 448)
    only_o_proj = rule(weights("int4", "awq"), modules="*.o_proj")
    result = decoder.quantize(only_o_proj, kv_cache="fp8")
    values = decoder.values("v_proj", decoder.quantized(result))
    assert result.kv is not None
    assert result.kv.value == pytest.approx(float(values.abs().max()) / 448, rel=1e-5)
    assert result.kv.value != pytest.approx(plain.value, rel=1e-3)
    assert result.kv.key == plain.key


def test_an_int8_cache_has_the_range_of_what_is_larger(decoder: Block) -> None:
    found = {kind: decoder.quantize("fp8", kv_cache=kind).kv for kind in ("fp8", "int8")}
    assert found["int8"].key == found["int8"].value
    largest = max(found["fp8"].key, found["fp8"].value) * 448
    assert found["int8"].key == pytest.approx(largest / 127)


def test_blocks_without_a_cache_have_no_cache_scales(synth_checkpoint: Checkpoint) -> None:
    assert make_block(synth_checkpoint, VIT).quantize("fp8", kv_cache="fp8").kv is None


def test_the_given_tensors_stay_as_they_are(decoder: Block) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in decoder.tensors.items()}
    before = copy.deepcopy(tensors)
    quantize_block(decoder.groups, decoder.schemes("int4-awq"), tensors, decoder.statistics, Observer())
    assert all(torch.equal(tensors[name], before[name]) for name in before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_no_number_is_named(decoder: Block, bad: float) -> None:
    name = f"{DECODER}.mlp.up_proj.weight"
    tensors = copy.deepcopy(decoder.tensors)
    tensors[name][3, 5] = bad
    with pytest.raises(CheckpointError, match=r"NaN or infinite(.|\n)*mlp\.up_proj\.weight(.|\n)*1 that are not"):
        quantize_block(decoder.groups, decoder.schemes("int4-rtn"), tensors, decoder.statistics, Observer())
