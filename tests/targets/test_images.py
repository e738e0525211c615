"""What encodes the images of a bundle's questions, on machines with and without what is faster."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from r1v_export.bundle import Bundle
from r1v_export.config import BuildConfig, Precision
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.manifest import PASSED
from r1v_export.runner.open_runner import open_runner
from r1v_export.targets.images import AUTO, choose, encoding_target, named_pair, parts_of
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget
from r1v_export.targets.openvino.target import OpenVinoTarget

PAIR = named_pair("onnxruntime", images="openvino")
IMAGE = Path(__file__).parents[2] / "examples/images/06-count.png"


@pytest.fixture
def bundle(tmp_path: Path, nano_bundle: Path) -> Path:
    """The shipped model for ONNX Runtime, as a machine wrote it whose gate passed."""
    copy = Path(shutil.copytree(nano_bundle, tmp_path / "nano"))
    write_verdict(copy, PASSED)
    return copy


@pytest.fixture
def runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVinoTarget, "why_not_images", lambda *_: None)


def write_verdict(bundle: Path, verdict: str | None, pair: str = PAIR) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["image_parity"] = {} if verdict is None else {pair: verdict}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def chosen(bundle: Path, asked: str = AUTO, device: str = "cpu") -> tuple[str | None, str | None]:
    found = choose(Bundle.open(bundle), "onnxruntime", asked, device)
    return found.encoder and found.encoder.name, found.note


def test_every_bundle_of_a_float32_tower_has_the_graphs_and_no_second_weights(nano_bundle: Path) -> None:
    (part,) = parts_of(nano_bundle, "onnxruntime")
    assert part.folder is not None
    assert sorted(path.name for path in part.folder.iterdir()) == ["engine.json", "projector.onnx", "vision.onnx"]
    assert sum(path.stat().st_size for path in part.folder.iterdir()) < 300_000
    assert parts_of(nano_bundle, "openvino") == []


@pytest.mark.usefixtures("runs_here")
def test_auto_takes_the_faster_one_where_its_gate_passed(bundle: Path) -> None:
    name, note = chosen(bundle)
    assert name == "openvino"
    assert note == "images: by openvino, in bfloat16, which is faster here; exact with --vision-target onnxruntime"
    assert chosen(bundle, device="cuda") == (None, None)


@pytest.mark.usefixtures("runs_here")
@pytest.mark.parametrize("verdict", [None, "its gate failed at vision", "openvino is not installed"])
def test_auto_takes_nothing_that_no_gate_has_passed(bundle: Path, verdict: str | None) -> None:
    write_verdict(bundle, verdict)
    assert chosen(bundle) == (None, None)
    assert (verdict or "no gate") in choose(Bundle.open(bundle), "onnxruntime", AUTO, "cpu").why


@pytest.mark.parametrize(
    ("installed", "products", "why"),
    [(None, True, "openvino is not installed"), ("a spec", False, "this CPU has no bfloat16 products")],
)
def test_auto_is_silent_where_nothing_faster_runs(
    bundle: Path, installed: str | None, products: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1v_export.targets.openvino.target.find_spec", lambda _: installed)
    monkeypatch.setattr("r1v_export.targets.openvino.target.has_bfloat16_products", lambda: products)
    assert chosen(bundle) == (None, None)
    assert choose(Bundle.open(bundle), "onnxruntime", AUTO, "cpu").why == why


@pytest.fixture
def of_4_bits(bundle: Path) -> Path:
    """A bundle of 4-bit weights, as far as the products of its images go."""
    path = bundle / "engines/onnxruntime/images/openvino/engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_products": ["int8", "bfloat16"]}))
    return bundle


def test_what_encodes_images_is_chosen_without_the_build_file(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader needs PyYAML, which Triton's environment and that of a server do not have."""
    monkeypatch.setitem(sys.modules, "r1v_export.build_file", None)
    assert choose(Bundle.open(bundle), "onnxruntime", AUTO, "cpu").why


@pytest.mark.usefixtures("runs_here")
def test_4_bit_weights_come_with_images_in_8_bits_where_their_gate_passed(of_4_bits: Path) -> None:
    write_verdict(of_4_bits, PASSED, f"{PAIR} in int8")
    found = choose(Bundle.open(of_4_bits), "onnxruntime", AUTO, "cpu")
    assert found.encoder is not None
    assert (found.encoder.title, found.encoder.products) == ("openvino in int8", "int8")
    assert (found.note or "").startswith("images: by openvino, in int8, which is faster here")
    write_verdict(of_4_bits, PASSED)
    found = choose(Bundle.open(of_4_bits), "onnxruntime", AUTO, "cpu")
    assert found.encoder is not None
    assert found.encoder.products == "bfloat16", "what has passed"
    for verdict, products in ((PASSED, "bfloat16"), ("omitted", "int8")):
        write_verdict(of_4_bits, verdict)
        asked = choose(Bundle.open(of_4_bits), "onnxruntime", "openvino", "cpu").encoder
        assert asked is not None
        assert asked.products == products, "asked for: what has passed, else the fastest"


@pytest.mark.usefixtures("runs_here")
def test_the_engines_own_images_in_8_bits_come_last(of_4_bits: Path) -> None:
    (of_4_bits / "engines/onnxruntime/images/onnxruntime").mkdir()
    parts = parts_of(of_4_bits, "onnxruntime")
    assert [part.title for part in parts] == ["openvino in int8", "openvino", "onnxruntime in int8"]
    write_verdict(of_4_bits, PASSED, f"{named_pair('onnxruntime', images='onnxruntime')} in int8")
    found = choose(Bundle.open(of_4_bits), "onnxruntime", AUTO, "cpu")
    assert found.encoder == parts[2]
    assert "openvino in int8 is here, but no gate has compared it" in found.why
    write_verdict(of_4_bits, PASSED)
    assert choose(Bundle.open(of_4_bits), "onnxruntime", AUTO, "cpu").encoder == parts[1]
    for part in parts:
        assert choose(Bundle.open(of_4_bits), "onnxruntime", part.option_values[1], "cpu").encoder == part
    assert choose(Bundle.open(of_4_bits), "onnxruntime", "onnxruntime", "cpu").encoder is None


@pytest.mark.parametrize(
    ("precision", "options", "products"),
    [
        ("fp32", {}, ("bfloat16",)),
        ("int8", {}, ("bfloat16",)),
        ("int4", {}, ("int8", "bfloat16")),
        ("int4", {"int4_inputs": "exact"}, ("bfloat16",)),
        ("int4", {"image_products": "bfloat16"}, ("bfloat16",)),
        ("fp32", {"image_products": "int8"}, ("int8",)),
    ],
)
def test_products_of_images_follow_those_of_the_answer(
    precision: Precision, options: dict[str, str], products: tuple[str, ...]
) -> None:
    config = BuildConfig(precision=precision, targets={"onnxruntime": options})
    assert OnnxRuntimeTarget().chosen_image_products(config) == products


def test_what_is_asked_for_is_taken_and_warned_of_if_no_gate_has_passed(bundle: Path) -> None:
    assert chosen(bundle, "onnxruntime") == (None, None)
    assert chosen(bundle, "openvino") == ("openvino", None)
    write_verdict(bundle, "its gate failed at vision")
    name, note = chosen(bundle, "openvino")
    assert name == "openvino"
    assert note is not None
    assert note.startswith("warning: images by openvino are not compared with PyTorch (its gate failed at vision)")
    assert f"r1v-export check {bundle} --vision-target openvino" in note
    for asked in ("tensorrt", "onnxruntime-int8"):
        with pytest.raises(UsageError, match="Nothing in the bundle encodes images by this name") as caught:
            chosen(bundle, asked)
        assert caught.value.expected == "auto, onnxruntime, openvino, openvino-bfloat16"


def test_a_target_that_encodes_no_images_for_engines_is_named() -> None:
    with pytest.raises(CapabilityError, match="gguf"):
        encoding_target("gguf")


@pytest.mark.usefixtures("runs_here")
def test_the_engine_that_answers_opens_no_tower_of_its_own(bundle: Path) -> None:
    pytest.importorskip("openvino")
    runner = open_runner(bundle)
    assert runner.name == PAIR
    exact = open_runner(bundle, vision_target="onnxruntime")
    answers = [each.ask("How many objects do you see?", IMAGE).text for each in (runner, exact)]
    assert answers[0] == answers[1]
    assert {"_vision", "_projector"}.isdisjoint(vars(runner.engine.engine))
    assert "_decoder" in vars(runner.engine.engine)


@pytest.mark.usefixtures("runs_here")
def test_a_library_that_does_not_load_leaves_the_images_to_the_engine(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise CapabilityError("The target openvino cannot be used.", found="openvino does not load")

    monkeypatch.setattr(OpenVinoTarget, "open_images", fails)
    runner, exact = open_runner(bundle), open_runner(bundle, vision_target="onnxruntime")
    side = exact.engine.sizes.tile_size
    pixels = np.zeros((1, 3, side, side), np.float32)
    np.testing.assert_array_equal(runner.engine.vision(pixels), exact.engine.vision(pixels))
    assert "images are not encoded by openvino" in caplog.text
    with pytest.raises(CapabilityError):
        open_runner(bundle, vision_target="openvino").engine.vision(pixels)
