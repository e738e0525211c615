"""The reference a block at a time computes what the whole reference does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.contract import BlockwiseEngine
from r1v_export.errors import ParityError
from r1v_export.pipeline.calibration import CALIBRATION, chosen_recipe, fake_quantize
from r1v_export.pipeline.sharded_calibration import calibrate
from r1v_export.quantization.apply.blockwise import reference_blocks
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.reference.model import ReferenceEngine, load

TOKENS = 5


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return Checkpoint.open(tiny_model)


def artifact_of(checkpoint: Checkpoint, folder: Path, **config: str) -> Artifact:
    built = BuildConfig(model=str(checkpoint.folder), calibration=CalibrationConfig(samples=2), **config)
    calibrate(built, chosen_recipe(built), checkpoint, folder / CALIBRATION, folder / "work", lambda done, total: None)
    return Artifact.open(folder / CALIBRATION, checkpoint)


def through_blocks(engine: BlockwiseEngine, pixels: np.ndarray, ids_1S: np.ndarray) -> list[np.ndarray]:
    """What an engine makes of pixels, of a text, and of one more token with the cache in place."""
    hidden = engine.vision_embeddings()(pixels)
    for layer in range(engine.vision_layers):
        hidden = engine.vision_block(layer)(hidden)
    features = engine.vision_features()(hidden)
    embeds = engine.embed()(ids_1S, np.zeros((0, engine.sizes.hidden), np.float32))
    for layer in range(engine.sizes.layers):
        run = engine.decoder_layer(layer)(2 * TOKENS)
        parts = run(np.ascontiguousarray(embeds[:, :-1]), 0), run(np.ascontiguousarray(embeds[:, -1:]), TOKENS)
        embeds = np.concatenate(parts, axis=1)
    return [features, engine.projector()(features), engine.head()(embeds[0, -2:])]


def through_whole(engine: ReferenceEngine, pixels: np.ndarray, ids_1S: np.ndarray) -> list[np.ndarray]:
    features = engine.vision(pixels)
    embeds = engine.embed(ids_1S, np.zeros((0, engine.sizes.hidden), np.float32))
    decoder, logits = engine.decoder(1, 2 * TOKENS), []
    for start, end in ((0, TOKENS), (TOKENS, TOKENS + 1)):
        where = np.arange(start, end)[None], np.array([start]), np.array([end]), np.array([[end - start - 1]])
        logits.append(decoder.step(np.ascontiguousarray(embeds[:, start:end]), *where)[0])
    return [features, engine.projector(features), np.concatenate(logits)]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"precision": "int4", "recipe": "int4-rtn"},
        {"precision": "int4", "recipe": "int4-awq"},
        {"precision": "fp8", "recipe": "fp8-kv"},
    ],
    ids=lambda config: config.get("recipe", "fp32"),
)
def test_blocks_compute_what_the_whole_model_does(
    checkpoint: Checkpoint, config: dict[str, str], tmp_path: Path
) -> None:
    artifact = artifact_of(checkpoint, tmp_path, **config) if config else None
    model = load(checkpoint)
    if artifact is not None:
        fake_quantize(model, artifact)
    rng, size = np.random.default_rng(0), checkpoint.spec.tiling.tile_size
    pixels = rng.standard_normal((2, 3, size, size), dtype=np.float32)
    ids_1S = rng.integers(0, checkpoint.spec.language.vocab_size, (1, TOKENS + 1))
    expected = through_whole(ReferenceEngine(model), pixels, ids_1S)
    found = through_blocks(reference_blocks(checkpoint, artifact), pixels, ids_1S)
    for whole, blocks in zip(expected, found, strict=True):
        np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-5)


def test_magnitudes_have_the_names_of_the_whole_model(checkpoint: Checkpoint) -> None:
    size = checkpoint.spec.tiling.tile_size
    pixels, ids_1S = np.ones((1, 3, size, size), np.float32), np.ones((1, TOKENS + 1), np.int64)
    whole, blocks = ReferenceEngine(load(checkpoint)), reference_blocks(checkpoint)
    with whole.recorded() as expected:
        through_whole(whole, pixels, ids_1S)
    with blocks.recorded() as found:
        through_blocks(blocks, pixels, ids_1S)
    assert set(found.by_layer()) == set(expected.by_layer())
    for layer, (tensor, magnitude) in expected.by_layer().items():
        assert found.by_layer()[layer] == (tensor, pytest.approx(magnitude, rel=1e-5))


def test_a_scale_that_is_not_its_weight_s_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = artifact_of(checkpoint, tmp_path, precision="int4", recipe="int4-rtn")
    read = Artifact.linear

    def doubled(self: Artifact, name: str) -> QuantizedLinear:
        linear = read(self, name)
        return replace(linear, scale=2 * linear.scale) if name.endswith("layers.0.mlp.up_proj") else linear

    monkeypatch.setattr(Artifact, "linear", doubled)
    blocks = reference_blocks(checkpoint, artifact)
    with pytest.raises(ParityError, match=r"layers\.0\.mlp\.up_proj"):
        blocks.decoder_layer(0)
