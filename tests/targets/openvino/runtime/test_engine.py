from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest

from r1v_export.errors import BundleError, GraphError
from r1v_export.targets.openvino import doctor
from r1v_export.targets.openvino.target import OpenVinoTarget
from r1v_export.weights_memory import Settling
from tests.targets.openvino.conftest import NEEDS_OPENVINO, make

pytestmark = NEEDS_OPENVINO
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def assert_close(ours: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)


def pixels(spec, tiles: int) -> np.ndarray:
    return normal(tiles, 3, spec.tiling.tile_size, spec.tiling.tile_size)


@pytest.mark.parametrize("tiles", [1, 3])
def test_images_become_the_references_embeddings_and_those_of_onnx_runtime(openvino_built, tiles):
    engine, built = openvino_built.open(), openvino_built.built
    pixels_T3HW = pixels(built.spec, tiles)
    features = built.reference.vision(pixels_T3HW)
    assert_close(engine.vision(pixels_T3HW), features)
    assert_close(engine.vision(pixels_T3HW), built.open_standard().vision(pixels_T3HW))
    assert_close(engine.projector(features), built.reference.projector(features))


def test_blocks_of_the_tower_are_the_references(openvino_built):
    built, pixels_T3HW = openvino_built.built, pixels(openvino_built.spec, 2)
    ours, expected = (list(e.vision_blocks(pixels_T3HW)) for e in (openvino_built.open(), built.reference))
    assert len(ours) == built.spec.vision.num_layers
    for block, wanted in zip(ours, expected, strict=True):
        assert_close(block, wanted)


def test_tokens_and_images_are_embedded_as_in_the_reference_bit_for_bit(openvino_built):
    built, spec = openvino_built.built, openvino_built.spec
    ids = RNG.integers(10, spec.language.vocab_size, (2, 9))
    ids[0, 2:5] = ids[1, 0] = spec.image_token_id
    images = normal(4, spec.language.hidden_size)
    engine = openvino_built.open()
    np.testing.assert_array_equal(engine.embed(ids, images), built.reference.embed(ids, images))
    ids[ids == spec.image_token_id] = 11
    np.testing.assert_array_equal(engine.embed(ids, images[:0]), built.reference.embed(ids, images[:0]))


def test_results_are_the_callers_to_keep(of_r1v):
    engine = of_r1v.open()
    first = engine.vision(pixels(of_r1v.spec, 1))
    kept = first.copy()
    engine.vision(pixels(of_r1v.spec, 1))
    np.testing.assert_array_equal(first, kept)


def test_many_threads_share_an_engine(of_r1v):
    engine, tiles = of_r1v.open(), [pixels(of_r1v.spec, 1 + number % 2) for number in range(6)]
    expected = [engine.vision(each) for each in tiles]
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: engine.vision(tiles[number])}))
        for number in range(len(tiles))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, wanted in enumerate(expected):
        np.testing.assert_array_equal(found[number], wanted)


def test_products_in_bfloat16_differ_from_float32_by_its_rounding_and_embeddings_do_not(r1v, tmp_path):
    if not doctor.has_bfloat16():
        pytest.skip("this CPU has no bfloat16 products")
    rounding = make(r1v, tmp_path / "bundle", matmul="bfloat16")
    engine, pixels_T3HW = rounding.open(), pixels(r1v.spec, 2)
    ours, expected = engine.vision(pixels_T3HW), r1v.reference.vision(pixels_T3HW)
    assert ours.dtype == np.float32
    assert 1e-4 < np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 2e-2
    ids = RNG.integers(10, r1v.spec.language.vocab_size, (1, 9))
    ids[ids == r1v.spec.image_token_id] = 11
    none = normal(0, r1v.spec.language.hidden_size)
    np.testing.assert_array_equal(engine.embed(ids, none), r1v.reference.embed(ids, none))


def test_weights_behind_links_are_read(own, tmp_path):
    """As a hub's cache keeps them."""
    blobs = tmp_path / "blobs"
    shutil.move(own.built.graphs, blobs)
    own.built.graphs.mkdir()
    for path in blobs.iterdir():
        (own.built.graphs / path.name).symlink_to(path)
    pixels_T3HW = pixels(own.spec, 1)
    assert_close(own.open().vision(pixels_T3HW), own.built.reference.vision(pixels_T3HW))


def test_a_moved_bundle_still_opens(own):
    moved = own.built.folder.rename(own.built.folder.with_name("elsewhere"))
    engine = OpenVinoTarget().open(moved / "engines" / "openvino", own.spec, "cpu")
    assert engine.decoder(1, 8).capacity == 8


def test_missing_and_short_weights_and_damaged_graphs_are_bundle_errors(own):
    data = own.built.graphs / "vision.data"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="too short"):
        own.open().vision(pixels(own.spec, 1))
    data.unlink()
    with pytest.raises(BundleError, match=r"vision\.data"):
        own.open().vision(pixels(own.spec, 1))
    (own.engine_folder / "decoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        own.open().decoder(1, 8)


def test_inputs_of_a_wrong_shape_name_the_graph(of_r1v):
    with pytest.raises(GraphError, match="vision") as error:
        of_r1v.open().vision(normal(1, 3, 5, 5))
    assert "pixel_values float32[1, 3, 5, 5]" in str(error.value.where)


def logits_of(engine, hidden):
    tokens = np.random.default_rng(1).standard_normal((1, 5, hidden)).astype(np.float32)
    zero = np.zeros(1, np.int64)
    return engine.decoder(1, 16).step(tokens, np.arange(5)[None], zero, zero + 5, np.array([[4]]))


@pytest.fixture
def compiled_by(monkeypatch):
    """The threads that compiled a decoder."""
    from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine

    threads, real = [], OpenVinoEngine._compile_decoder

    def compile_decoder(*arguments, **options):
        threads.append(threading.current_thread().name)
        return real(*arguments, **options)

    monkeypatch.setattr(OpenVinoEngine, "_compile_decoder", compile_decoder)
    return threads


@pytest.mark.parametrize(("alone", "compiling"), [(False, "opening"), (True, "MainThread")])
def test_a_decoder_that_was_begun_computes_the_same(of_r1v, compiled_by, alone, compiling):
    begun, hidden = of_r1v.open(), of_r1v.spec.language.hidden_size
    begun.begin_decoder(alone)
    begun.begin_decoder(alone)
    np.testing.assert_array_equal(logits_of(begun, hidden), logits_of(of_r1v.open(), hidden))
    begun.begin_decoder(alone)
    assert compiled_by == [compiling, "MainThread"]


def test_a_damaged_decoder_is_refused_at_its_first_use_and_compiled_anew_at_the_next(own, compiled_by):
    file = own.engine_folder / "decoder.onnx"
    whole = file.read_bytes()
    file.write_bytes(b"not a graph")
    engine = own.open()
    engine.begin_decoder(alone=False)
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        engine.decoder(1, 8)
    file.write_bytes(whole)
    logits_of(engine, own.spec.language.hidden_size)
    assert compiled_by == ["opening", "MainThread"]


def test_memory_of_weights_is_settled_behind_the_first_step_for_one_token(of_r1v, monkeypatch):
    asked = []
    monkeypatch.setattr(Settling, "begin", lambda self: asked.append(self))
    decoder, hidden = of_r1v.open().decoder(1, 16), of_r1v.spec.language.hidden_size
    for start, seq, times in ((0, 4, 0), (4, 1, 1)):
        positions, embeds = np.arange(start, start + seq)[None], np.zeros((1, seq, hidden), np.float32)
        decoder.step(embeds, positions, np.array([start]), np.array([start + seq]), np.array([[seq - 1]]))
        assert len(asked) == times
