"""The files computed as llama.cpp computes them, against the reference; damaged files are refused by name."""

from __future__ import annotations

import shutil

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig
from r1v_export.errors import BundleError
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.runner.kv_cache import KVCache
from r1v_export.targets.gguf.runtime.clip import round_inputs
from r1v_export.targets.gguf.runtime.reader import GgufBlocks, open_gguf
from r1v_export.targets.gguf.write.files import write_gguf
from tests.targets.gguf.conftest import Written


@pytest.fixture
def tanh_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's GELU in the reference."""
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x, approximate="tanh": gelu(x, approximate="tanh"))


def _pixels(spec) -> np.ndarray:
    size = spec.tiling.tile_size
    return np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)


@pytest.mark.parametrize("model", ["6b", "300m"])
def test_the_tower_is_the_references_also_where_layer_norm_stands_for_rms_norm(make, model, tanh_gelu) -> None:
    written = make(model, "fp32")
    reference = ReferenceEngine(load(written.checkpoint))
    engine = open_gguf(written.folder, written.checkpoint.spec, "cpu")
    pixels = _pixels(written.checkpoint.spec)
    expected = reference.vision(pixels)
    assert np.abs(engine.vision(pixels) - expected).max() < 2e-6 * np.abs(expected).max()
    for ours, theirs in zip(engine.vision_blocks(pixels), reference.vision_blocks(pixels), strict=True):
        assert np.abs(ours - theirs).max() < 2e-6 * np.abs(theirs).max()


def test_the_projector_is_the_references_where_its_inputs_have_no_mean(make, tanh_gelu) -> None:
    written = make("6b", "fp32")
    reference = ReferenceEngine(load(written.checkpoint))
    engine = open_gguf(written.folder, written.checkpoint.spec, "cpu")
    features = np.random.default_rng(1).standard_normal((1, 4, written.checkpoint.spec.projector.in_features))
    features = (features - features.mean(-1, keepdims=True)).astype(np.float32)
    expected = reference.projector(features)
    assert np.abs(engine.projector(features) - expected).max() < 1e-5 * np.abs(expected).max()


def test_with_a_mean_only_the_scale_of_the_projectors_norm_differs(make, tanh_gelu) -> None:
    written = make("6b", "fp32")
    spec = written.checkpoint.spec
    model = load(written.checkpoint)
    engine = open_gguf(written.folder, spec, "cpu")
    features = (
        torch.from_numpy(np.random.default_rng(1).standard_normal((1, 4, spec.projector.in_features))).float() + 1
    )
    norm, first, _, second = model.mlp1
    centered = features - features.mean(-1, keepdim=True)
    scaled = centered * torch.rsqrt(features.square().mean(-1, keepdim=True) + norm.eps)
    expected = second(F.gelu(first(scaled * norm.weight + norm.bias))).numpy()
    assert np.abs(engine.projector(features.numpy()) - expected).max() < 1e-5 * np.abs(expected).max()


def test_inputs_are_rounded_as_gguf_py_quantizes_them() -> None:
    x = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    q8 = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(x, q8), q8)
    assert np.allclose(round_inputs(torch.from_numpy(x)).numpy(), expected, atol=1e-7)


def test_a_head_that_is_the_token_embedding_takes_rounded_inputs_and_the_embedding_none(tmp_path) -> None:
    tied = {"llm_config.tie_word_embeddings": True}
    folder = synthesize(tmp_path / "tied", preset="nano", vision_layers=1, language_layers=1, overrides=tied)
    checkpoint = Checkpoint.open(folder)
    (tmp_path / "out").mkdir()
    config = BuildConfig(precision="fp16", targets={"gguf": {"model": "Q4_K_M"}})
    write_gguf(checkpoint, None, config, tmp_path / "out")
    language = open_gguf(tmp_path / "out", checkpoint.spec, "cpu").model.language_model
    blocks = GgufBlocks(tmp_path / "out", checkpoint.spec)
    (stored,) = (
        tensor for tensor in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors if tensor.name == "token_embd.weight"
    )
    assert stored.tensor_type.name == "Q6_K"
    table = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type))
    x = torch.randn(3, table.shape[1])
    assert torch.equal(language.lm_head(x), F.linear(round_inputs(x, 256), table))
    assert np.array_equal(blocks.head()(x.numpy()), language.lm_head(language.model.norm(x)).numpy())
    assert torch.equal(language.model.embed_tokens(torch.tensor([5])), table[5:6])


def test_blocks_one_after_the_other_compute_what_the_whole_engine_does(written: Written) -> None:
    spec = written.checkpoint.spec
    engine, blocks = open_gguf(written.folder, spec, "cpu"), GgufBlocks(written.folder, spec)
    pixels = _pixels(spec)
    hidden = blocks.vision_embeddings()(pixels)
    for layer, expected in enumerate(engine.vision_blocks(pixels)):
        hidden = blocks.vision_block(layer)(hidden)
        _assert_close(hidden, expected)
    features = blocks.vision_features()(hidden)
    _assert_close(features, engine.vision(pixels))
    images = blocks.projector()(features)
    _assert_close(images, engine.projector(features))
    ids = np.array([[3, spec.image_token_id, 5, 639, 3]])
    embeds = blocks.embed()(ids, images[0, :1])
    assert np.array_equal(embeds, engine.embed(ids, images[0, :1]))
    expected = KVCache(engine.decoder(1, 64)).append(embeds, np.array([5]))
    for layer in range(blocks.sizes.layers):
        embeds = blocks.decoder_layer(layer)(64)(embeds, 0)
    _assert_close(blocks.head()(embeds[0, -1:]), expected)


def _assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("file", ["model.gguf", "mmproj.gguf"])
def test_a_truncated_or_missing_file_is_named(make, tmp_path, file) -> None:
    written = make("300m", "fp16")
    shutil.copytree(written.folder, tmp_path, dirs_exist_ok=True)
    content = (tmp_path / file).read_bytes()
    for size in (0, 3, 100, len(content) // 2):
        (tmp_path / file).write_bytes(content[:size])
        with pytest.raises(BundleError, match=file):
            open_gguf(tmp_path, written.checkpoint.spec, "cpu")
        with pytest.raises(BundleError, match=file):
            GgufBlocks(tmp_path, written.checkpoint.spec)
    (tmp_path / file).unlink()
    with pytest.raises(BundleError, match=file):
        open_gguf(tmp_path, written.checkpoint.spec, "cpu")
    with pytest.raises(BundleError, match=file):
        GgufBlocks(tmp_path, written.checkpoint.spec)
