"""The whole model and its engine, against transformers' InternVLForConditionalGeneration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r1v_export.contract import CPU_PREFILL_CHUNK
from r1v_export.reference.model import Model, ReferenceEngine

INTERNVIT_300M = {"norm": "layer_norm", "qk_norm": False, "qkv_bias": True}
TILES = 3


@pytest.fixture(scope="module")
def model(make_spec, randomize) -> Model:
    return randomize(Model(make_spec()))


@pytest.fixture(scope="module")
def engine(model) -> ReferenceEngine:
    return ReferenceEngine(model)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((TILES, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def input_ids(model) -> np.ndarray:
    """Text, two tiles, text, one tile, text."""
    ids = np.random.default_rng(1).integers(10, 97, (1, 30))
    ids[0, 4:12] = ids[0, 15:19] = model.spec.image_token_id
    return ids


def published_names(layers: str, language_layers: str) -> set[str]:
    """The weights of a Skywork-R1V checkpoint, from the table in its model family's description."""
    vit, llm = f"vision_model.encoder.layers.{layers}", f"language_model.model.layers.{language_layers}"
    outer = ["class_embedding", "position_embedding", "patch_embedding.weight", "patch_embedding.bias"]
    linears = ["attn.proj", "mlp.fc1", "mlp.fc2"]
    norms = ["norm1", "norm2", "attn.q_norm", "attn.k_norm", "attn.qkv"]
    return {
        *(f"vision_model.embeddings.{name}" for name in outer),
        *(f"{vit}.{name}.{kind}" for name in linears for kind in ("weight", "bias")),
        *(f"{vit}.{name}.weight" for name in norms),
        *(f"{vit}.{name}" for name in ("ls1", "ls2")),
        *(f"mlp1.{index}.{kind}" for index in (0, 1, 3) for kind in ("weight", "bias")),
        *(f"{llm}.self_attn.{letter}_proj.{kind}" for letter in "qkv" for kind in ("weight", "bias")),
        *(f"{llm}.{name}.weight" for name in ("self_attn.o_proj", "input_layernorm", "post_attention_layernorm")),
        *(f"{llm}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        *(f"language_model.{name}.weight" for name in ("model.embed_tokens", "model.norm", "lm_head")),
    }


def test_parameters_bear_the_published_names(model):
    expected = {name for vit in "01" for llm in "012" for name in published_names(vit, llm)}
    assert set(model.state_dict()) == expected


def test_an_internvit_300m_has_its_biases_and_no_qk_norm(make_spec, model):
    small = set(Model(make_spec(**INTERNVIT_300M)).state_dict())
    assert {
        name.removeprefix("vision_model.encoder.layers.0.") for name in small - set(model.state_dict()) if ".0." in name
    } == {
        "norm1.bias",
        "norm2.bias",
        "attn.qkv.bias",
    }
    assert not [name for name in small if "q_norm" in name or "k_norm" in name]


@torch.no_grad()
def test_logits_of_a_prompt_with_images_equal_those_of_transformers(
    model, engine, pixels, input_ids, transformers_twin
):
    expected = transformers_twin(model)(
        input_ids=torch.from_numpy(input_ids), pixel_values=torch.from_numpy(pixels)
    ).logits[:, -1]
    image_embeds = engine.projector(engine.vision(pixels)).reshape(-1, 40)
    inputs_embeds = engine.embed(input_ids, image_embeds)
    logits = prefill(engine, inputs_embeds)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_answer_equals_that_of_transformers_generate(model, engine, pixels, input_ids, transformers_twin):
    expected = (
        transformers_twin(model)
        .generate(
            input_ids=torch.from_numpy(input_ids),
            pixel_values=torch.from_numpy(pixels),
            max_new_tokens=32,
            do_sample=False,
        )[0, 30:]
        .tolist()
    )
    image_embeds = engine.projector(engine.vision(pixels)).reshape(-1, 40)
    decoder, ids, done, generated = engine.decoder(1, 64), input_ids, 0, []
    while len(generated) < 32:
        seq = ids.shape[1]
        start = np.array([done])
        logits = decoder.step(
            engine.embed(ids, image_embeds if done == 0 else image_embeds[:0]),
            start[:, None] + np.arange(seq),
            start,
            start + seq,
            np.array([[seq - 1]]),
        )
        done, ids = done + seq, logits.argmax(-1)
        generated.append(int(ids[0, 0]))
    assert generated == expected


def prefill(engine: ReferenceEngine, inputs_embeds: np.ndarray) -> np.ndarray:
    batch, seq, _ = inputs_embeds.shape
    start = np.zeros(batch, np.int64)
    positions = np.tile(np.arange(seq), (batch, 1))
    last = np.full((batch, 1), seq - 1)
    return engine.decoder(batch, seq).step(inputs_embeds, positions, start, start + seq, last)[:, 0]


def test_the_engine_keeps_the_contracts_shapes(engine, model, pixels, input_ids):
    sizes = model.spec.sizes
    assert engine.sizes == sizes
    features = engine.vision(pixels)
    assert features.shape == (TILES, sizes.tokens_per_tile, sizes.vision_features)
    image_embeds = engine.projector(features)
    assert image_embeds.shape == (TILES, sizes.tokens_per_tile, sizes.hidden)
    inputs_embeds = engine.embed(input_ids, image_embeds.reshape(-1, sizes.hidden))
    assert inputs_embeds.shape == (*input_ids.shape, sizes.hidden)
    assert prefill(engine, inputs_embeds).shape == (1, sizes.vocab)


@torch.no_grad()
def test_pieces_of_prompts_are_as_short_as_on_other_engines_on_a_cpu(engine):
    assert engine.cache_limits().prefill.chunk == CPU_PREFILL_CHUNK


def test_the_blocks_lead_to_the_vision_features(engine, model, pixels):
    blocks = list(engine.vision_blocks(pixels))
    assert len(blocks) == model.spec.vision.num_layers
    features = model.vision_model.to_features(torch.from_numpy(blocks[-1]))
    np.testing.assert_array_equal(features.numpy(), engine.vision(pixels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_engine_in_half_precision_takes_and_gives_float32(make_spec, randomize, engine, pixels, dtype):
    half = ReferenceEngine(randomize(Model(make_spec())).to(dtype))
    features = half.vision(pixels)
    inputs_embeds = half.embed(np.array([[11, 12]]), np.empty((0, 40), np.float32))
    assert {features.dtype, inputs_embeds.dtype, prefill(half, inputs_embeds).dtype} == {np.dtype(np.float32)}
    exact = engine.vision(pixels)
    relative_error = np.linalg.norm(features - exact) / np.linalg.norm(exact)
    assert 0 < relative_error < 0.02
