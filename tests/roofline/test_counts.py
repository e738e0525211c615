"""Counts against PyTorch's own FLOP counter and against what is known of the weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from r1v_export import contract
from r1v_export.errors import GraphError
from r1v_export.exporters import export
from r1v_export.pipeline.estimate import graph_parameters
from r1v_export.reference.language import CacheStep, rotary_tables
from r1v_export.roofline.counts import by_layer, count
from tests.tiny_models import random_model, tiny_spec

TILES, SEQ, CAPACITY = 3, 5, 16
ONE_LOGIT = {"batch": 1, "logit_positions": 1, "capacity": CAPACITY}


@pytest.fixture(scope="module")
def graphs():
    names = (contract.VISION, contract.PROJECTOR, contract.DECODER)
    return {name: export.trace_graph(name, tiny_spec(), torch.float32) for name in names}


def flops(work) -> int:
    # As plain products: PyTorch does not count its fused attention on the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_a_vision_tower_and_projector_take_the_flops_that_pytorch_counts(graphs) -> None:
    model = random_model(tiny_spec())
    pixels = torch.zeros(TILES, 3, 56, 56)
    expected = flops(lambda: model.mlp1(model.vision_model(pixels)))
    found = [count(graphs[name], {"tiles": TILES}) for name in (contract.VISION, contract.PROJECTOR)]
    assert sum(cost.flops for costs in found for cost in costs) == expected


def test_a_decoder_without_a_filled_cache_takes_the_flops_of_causal_attention(graphs) -> None:
    spec = tiny_spec().language
    model = random_model(tiny_spec()).language_model
    step = CacheStep(torch.arange(SEQ)[None], torch.tensor([0]), torch.tensor([SEQ]))
    cache = model.empty_cache(1, SEQ)
    embeds, last = torch.zeros(1, SEQ, spec.hidden_size), torch.tensor([[SEQ - 1]])
    expected = flops(lambda: model(embeds, rotary_tables(spec, SEQ), step, cache, last))
    # PyTorch counts the whole square of attention; causal attention is its lower triangle.
    pair = 2 * spec.num_layers * spec.num_heads * 2 * spec.head_dim
    expected -= pair * (SEQ * SEQ - SEQ * (SEQ + 1) // 2)
    costs = count(graphs[contract.DECODER], {**ONE_LOGIT, "seq": SEQ, "length": SEQ})
    assert sum(cost.flops for cost in costs) == expected


def test_one_more_token_reads_every_weight_of_the_products_and_the_cache_once(graphs) -> None:
    language = tiny_spec().language
    costs = count(graphs[contract.DECODER], {**ONE_LOGIT, "seq": 1, "length": 9})
    biases = language.num_heads * language.head_dim + 2 * language.num_kv_heads * language.head_dim
    norms = 2 * language.hidden_size
    pointwise = language.num_layers * (biases + norms) + language.hidden_size
    assert sum(cost.weight_bytes for cost in costs) == 4 * (graph_parameters(tiny_spec())["decoder"] - pointwise)
    slot = 4 * 2 * language.num_kv_heads * language.head_dim * language.num_layers
    assert sum(cost.cache_bytes for cost in costs) == slot * (9 + 1)


def test_layers_of_the_same_shape_cost_the_same(graphs) -> None:
    layers = by_layer(count(graphs[contract.VISION], {"tiles": TILES}))
    first, second = (layers[f"vision_model.encoder.layers.{index}"] for index in range(2))
    assert [cost.flops for cost in first] == [cost.flops for cost in second]
    assert len(first) == 5  # qkv, attention, proj, fc1, fc2


def test_a_symbol_without_a_size_is_named(graphs) -> None:
    with pytest.raises(GraphError, match="tiles"):
        count(graphs[contract.VISION], {})
