from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor, nn

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.groups import apply_smoothing, layer_of, linear_groups, linear_shapes
from r1v_export.reference.language import CacheStep, rotary_tables
from r1v_export.reference.model import Model


@pytest.fixture(params=["rms_norm", "layer_norm"])
def spec(request: pytest.FixtureRequest, synth_checkpoint: Checkpoint) -> ModelSpec:
    """InternViT-6B's and InternViT-300M's kind of block; two query heads to a key-value head."""
    changes = {"norm": request.param, "qk_norm": request.param == "rms_norm", "qkv_bias": request.param == "layer_norm"}
    vision = synth_checkpoint.spec.vision.model_copy(update=changes)
    return synth_checkpoint.spec.model_copy(update={"vision": vision})


def random_model(spec: ModelSpec) -> Model:
    torch.manual_seed(0)
    model = Model(spec).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms and biases that are not all one or zero
            parameter.copy_(
                torch.rand_like(parameter) + 0.5 if name.endswith("weight") else torch.randn_like(parameter)
            )
    return model


def run(model: Model, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Image embeddings of a tile and logits of a sequence."""
    generator = torch.Generator().manual_seed(1)
    size, hidden = spec.tiling.tile_size, spec.language.hidden_size
    embeds_TNE = model.image_embeds(torch.randn(1, 3, size, size, generator=generator))
    positions_BS = torch.arange(6)[None]
    step = CacheStep(positions_BS, torch.zeros(1, dtype=torch.int64), torch.tensor([6]))
    inputs_BSE = torch.randn(1, 6, hidden, generator=generator)
    return embeds_TNE, model.language_model(inputs_BSE, rotary_tables(spec.language, 6), step, None)[0]


def test_every_linear_of_the_model_is_in_one_site(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = Model(spec)
    expected = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    assert linear_shapes(spec) == expected
    assert sorted(linear for group in linear_groups(spec) for linear in group.linears) == sorted(expected)
    for group in linear_groups(spec):
        assert group.name == group.linears[0]
        assert {expected[linear][1] for linear in group.linears} == {group.in_features}
        assert all(linear.startswith(group.block) for linear in group.linears)


def test_the_linears_of_a_group_read_one_tensor(spec: ModelSpec) -> None:
    model, read = random_model(spec), {}
    for name in linear_shapes(spec):
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: read.update({name: args[0]}))
    run(model, spec)
    for group in linear_groups(spec):
        assert len({id(read[linear]) for linear in group.linears}) == 1, group.name
    assert len({id(tensor) for tensor in read.values()}) == len(linear_groups(spec))


@hypothesis.settings(
    max_examples=5, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_moving_scales_leaves_the_function_unchanged(spec: ModelSpec, seed: int) -> None:
    model = random_model(spec)
    before = run(model, spec)
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(model.state_dict())
    for group in linear_groups(spec):
        if group.smooth_layer is not None:
            scale = torch.empty(group.in_features).uniform_(0.1, 10, generator=generator)
            apply_smoothing(group, group.smooth_layer.shared(scale), tensors)
    assert sum(not torch.equal(tensors[name], value) for name, value in model.state_dict().items()) > 10
    model.load_state_dict(tensors)
    for found, expected in zip(run(model, spec), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


def test_what_cannot_take_a_scale_has_no_fold(spec: ModelSpec) -> None:
    without = {group.name.rpartition("layers.")[2] for group in linear_groups(spec) if group.smooth_layer is None}
    blocks = range(spec.vision.num_layers)
    vision = {f"{i}.{linear}" for i in blocks for linear in ("attn.proj", "mlp.fc2")}
    assert without == vision | {"mlp1.3", "language_model.lm_head"}


def test_linears_know_their_layer() -> None:
    assert layer_of("language_model.model.layers.12.mlp.up_proj") == ("language_model.model", 12)
    assert layer_of("vision_model.encoder.layers.0.attn.qkv") == ("vision_model.encoder", 0)
    assert layer_of("mlp1.1") is None
