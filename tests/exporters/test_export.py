"""The exported graphs compute what the reference computes: run by ONNX Runtime, compared at the contract's boundary."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from r1v_export import contract
from r1v_export.exporters import trace as tracing
from r1v_export.exporters.export import SOURCES, export_graph, trace_graph
from r1v_export.model_spec import RopeScaling
from r1v_export.reference.model import Model, ReferenceEngine
from tests import shared_traces
from tests.exporters.graph_text import dump
from tests.tiny_models import checkpoint_of, random_model, tiny_spec

RNG = np.random.default_rng(0)


def session(name: str, model: Model, folder) -> onnxruntime.InferenceSession:
    path = export_graph(name, checkpoint_of(model), folder, torch.float32)
    onnx.checker.check_model(path, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of the cache's copy, which only I/O binding avoids
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(graph: onnxruntime.InferenceSession, **inputs: np.ndarray) -> np.ndarray:
    return graph.run(None, inputs)[0]


def pixels(spec, tiles: int) -> np.ndarray:
    return RNG.standard_normal((tiles, 3, spec.tiling.tile_size, spec.tiling.tile_size), dtype=np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "layer_norm", "qk_norm": False, "qkv_bias": True},
        {"ps_version": "v1"},
        {"image_size": 112},
    ],
    ids=["InternViT-6B", "InternViT-300M", "pixel shuffle v1", "position embedding of another grid"],
)
def test_vision_and_projector_match_pytorch(changes, tmp_path):
    model = random_model(tiny_spec(**changes))
    reference = ReferenceEngine(model)
    vision, projector = (session(name, model, tmp_path) for name in (contract.VISION, contract.PROJECTOR))
    for tiles in (1, 3):
        x = pixels(model.spec, tiles)
        features = run(vision, pixel_values=x)
        np.testing.assert_allclose(features, reference.vision(x), atol=2e-5)
        embeds = run(projector, vision_features=features)
        np.testing.assert_allclose(embeds, reference.projector(features), atol=2e-5)


def test_embed_puts_image_embeddings_where_the_image_tokens_are(model, tmp_path):
    graph = session(contract.EMBED, model, tmp_path)
    ids = RNG.integers(8, 99, (2, 9))
    ids[0, 2:5] = ids[1, 6:7] = model.spec.image_token_id
    images = RNG.standard_normal((4, 64), dtype=np.float32)
    embeds = run(graph, input_ids=ids, image_embeds=images)
    np.testing.assert_array_equal(embeds[0, 2:5], images[:3])
    np.testing.assert_array_equal(embeds[1, 6], images[3])
    np.testing.assert_array_equal(embeds, ReferenceEngine(model).embed(ids, images))


def test_embed_takes_a_single_token_without_images(model, tmp_path):
    graph = session(contract.EMBED, model, tmp_path)
    for token in (11, model.spec.image_token_id):
        embeds = run(graph, input_ids=np.array([[token]]), image_embeds=np.zeros((0, 64), np.float32))
        np.testing.assert_array_equal(embeds[0, 0], model.language_model.model.embed_tokens.weight[token].detach())


YARN = RopeScaling(type="yarn", factor=4, original_max_position_embeddings=16, attention_factor=1.1386)


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"rope_scaling": YARN, "rope_theta": 1e4}],
    ids=["own lm_head", "tied embeddings", "YaRN"],
)
def test_decoder_matches_pytorch_for_ragged_prompts_decode_steps_and_later_turns(changes, tmp_path):
    model = random_model(tiny_spec(language=changes))
    graph = session(contract.DECODER, model, tmp_path)
    spec, capacity = model.spec, 32
    reference = ReferenceEngine(model).decoder(batch=2, capacity=capacity)
    shape = (2, spec.language.num_kv_heads, capacity, spec.language.head_dim)
    cache = {
        name(layer): np.zeros(shape, np.float32)
        for layer in range(spec.language.num_layers)
        for name in (contract.past_key, contract.past_value)
    }
    # A prompt of 9 and 5 tokens, one decode step each, then three more tokens at once, with the logits of all three.
    for seq, write, last in ((9, [0, 0], [[8], [4]]), (1, [9, 5], [[0], [0]]), (3, [10, 6], [[0, 1, 2], [1, 0, 2]])):
        write_index = np.array(write)
        inputs = {
            contract.INPUTS_EMBEDS: RNG.standard_normal((2, seq, 64), dtype=np.float32),
            contract.POSITION_IDS: write_index[:, None] + np.arange(seq),
            contract.CACHE_WRITE_INDEX: write_index,
            contract.CACHE_LENGTH: write_index + seq,
            contract.LOGITS_INDEX: np.array(last),
        }
        logits, *present = graph.run(None, inputs | cache)
        cache = dict(zip(cache, present, strict=True))
        np.testing.assert_allclose(logits, reference.step(*inputs.values()), atol=2e-5)


@pytest.mark.parametrize("compute", [torch.float16, torch.bfloat16], ids=str)
def test_every_graph_exports_in_16_bits_and_is_valid_onnx(compute, checkpoint, tmp_path):
    for name in SOURCES:
        path = export_graph(name, checkpoint, tmp_path, compute)
        onnx.checker.check_model(path, full_check=True)
        graph = onnx.load(path, load_external_data=False).graph
        assert graph.name == name
        wide = {i.name for i in graph.initializer if i.data_type == 1}
        assert not wide, "float32 is left in a 16-bit graph"


def test_the_functions_of_operators_are_read_for_the_first_graph_and_not_again(monkeypatch):
    from torch.onnx._internal.exporter import _registration

    own = vars(_registration.ONNXRegistry)["from_torchlib"]
    read, reads = _registration.onnxscript_apis.get_torchlib_ops, []
    monkeypatch.setattr(_registration.onnxscript_apis, "get_torchlib_ops", lambda: reads.append(1) or read())
    tracing._registry.cache_clear()
    first, second = (dump(trace_graph(contract.EMBED, tiny_spec(), torch.float32)) for _ in range(2))
    assert (len(reads), first) == (1, second)
    assert vars(_registration.ONNXRegistry)["from_torchlib"] is own


@pytest.mark.parametrize("name", [contract.VISION, contract.DECODER])
def test_a_trace_that_test_processes_share_is_the_traced_graph(name, tmp_path):
    spec, traced = tiny_spec(), []

    def trace(*arguments):
        traced.append(trace_graph(*arguments))  # not the one of tests/conftest.py, whose graphs are copies
        return traced[-1]

    first, second = (shared_traces.shared(trace, tmp_path / "traces")(name, spec, torch.float32) for _ in range(2))
    (graph,) = traced
    assert dump(first) == dump(second) == dump(graph)
    for ours, theirs in zip(second.graph.all_nodes(), graph.graph.all_nodes(), strict=True):
        assert (ours.name, ours.metadata_props) == (theirs.name, theirs.metadata_props)
        for value, expected in zip(ours.inputs, theirs.inputs, strict=True):
            assert (value is None) == (expected is None)
            if value is not None and expected.const_value is not None:
                np.testing.assert_array_equal(value.const_value.numpy(), expected.const_value.numpy())
