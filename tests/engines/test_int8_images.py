"""Images that libr1v encodes in 8 bits, against Python's."""

from __future__ import annotations

import ctypes
import json
import shutil

import pytest

from r1v_export.bundle import Bundle
from r1v_export.cpus import is_x86
from r1v_export.nano.dataset import samples
from r1v_export.runner.base import Request
from r1v_export.runner.open_runner import open_runner
from r1v_export.targets.images import choose
from tests.engines import c_api, programs
from tests.engines.c_api import ask, pixels
from tests.engines.conftest import ONNXRUNTIME

PAIR = "onnxruntime with images by onnxruntime in int8"
DIFFERS = "images in 8 bits differ from float32 ones, or nothing was compared"

pytestmark = pytest.mark.slow(30)


@pytest.fixture(scope="module")
def bundle(int8_inputs_bundle, tmp_path_factory):
    """A copy of the bundle, for verdicts of its own."""
    folder = tmp_path_factory.mktemp("images") / "bundle"
    shutil.copytree(int8_inputs_bundle, folder)
    return folder


@pytest.fixture
def opened(engines):
    library, engines_open = c_api.load(engines / "engines/api/libr1v.so"), []

    def open_bundle(bundle, vision_target=None, **options):
        given = {"onnxruntime_library": str(ONNXRUNTIME).encode(), **options}
        if vision_target is not None:
            given["vision_target"] = vision_target.encode()
        engines_open.append(c_api.Engine(library, bundle, **given))
        return engines_open[-1]

    yield open_bundle
    for engine in engines_open:
        engine.close()


def say(bundle, verdict):
    """Let the manifest say what a gate of images found."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["image_parity"] = {} if verdict is None else {PAIR: verdict}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def log_probabilities(engine, sample):
    request = engine.start(sample.question, pixels(engine, sample.image), sampling=engine.greedy(logprobs=0))
    try:
        return [logprobs[0] for *_, logprobs in engine.all_events(request) if logprobs is not None]
    finally:
        engine.library.r1v_request_free(request)


def test_answers_are_those_of_python_s_images_in_8_bits(bundle, opened):
    engine, exact = opened(bundle, "onnxruntime-int8"), opened(bundle, "onnxruntime")
    runner, differing = open_runner(bundle, vision_target="onnxruntime-int8"), 0
    for sample in samples("eval", 12):
        expected = runner.answer(Request.ask(sample.question, sample.image))
        assert ask(engine, sample.question, pixels(engine, sample.image))[2] == list(expected.token_ids)
        differing += log_probabilities(engine, sample) != log_probabilities(exact, sample)
    assert differing > 6, DIFFERS


@pytest.mark.parametrize("verdict", ["passed", "its gate failed at vision", None])
def test_what_a_gate_has_compared_is_chosen_as_python_does(bundle, opened, verdict):
    say(bundle, verdict)
    engine, chosen = opened(bundle), choose(Bundle.open(bundle), "onnxruntime", "auto", "cpu")
    description, note = engine.words
    if chosen.encoder is not None:
        assert note == chosen.note
        assert description.endswith("CPUExecutionProvider, images in int8")
    else:
        assert note.startswith("images: by onnxruntime, in float32; onnxruntime in int8 is here, but ")
        assert note.rpartition(", but ")[2] in chosen.why
        assert description.endswith("CPUExecutionProvider")
    assert (chosen.encoder is not None) == (verdict == "passed" and is_x86())
    warned: list[str] = []
    warn = c_api.WARN(lambda _, message: warned.append("warning: " + message.decode()))
    asked = opened(bundle, "onnxruntime-int8", warn=ctypes.cast(warn, ctypes.c_void_p))
    assert asked.words == (f"{description.removesuffix(', images in int8')}, images in int8", "")
    expected = choose(Bundle.open(bundle), "onnxruntime", "onnxruntime-int8", "cpu").note or ""
    reason = "" if verdict else " (no gate has compared it)"
    assert [message.replace(reason, "") for message in warned] == ([expected] if expected else [])
    assert opened(bundle, "onnxruntime").words == (description.removesuffix(", images in int8"), "")


def test_what_the_bundle_does_not_have_is_refused_with_what_it_has(bundle, opened, nano_bundle):
    with pytest.raises(c_api.StatusError, match="auto, onnxruntime, onnxruntime-int8") as caught:
        opened(bundle, "openvino")
    assert caught.value.status == c_api.USAGE
    with pytest.raises(c_api.StatusError, match=r"auto, onnxruntime\n") as caught:
        opened(nano_bundle, "onnxruntime-int8")
    assert "--precision int4" in str(caught.value)
    assert opened(nano_bundle, "").words[1] == ""


def test_a_damaged_graph_in_8_bits_is_refused(bundle, opened):
    graph = bundle / "engines/onnxruntime/images/onnxruntime/vision.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        opened(bundle, "onnxruntime")
        with pytest.raises(c_api.StatusError, match="is altered"):
            opened(bundle, "onnxruntime-int8")
    finally:
        graph.write_bytes(content)


@pytest.mark.skipif(not is_x86(), reason="compared on x86 alone")
def test_the_program_says_what_encodes_images(bundle, r1v):
    say(bundle, "passed")
    image = ("--image", programs.REPOSITORY / "examples/images/06-count.png", "How many objects do you see?")
    note = "images: by onnxruntime, in int8, which is faster here; exact with --vision-target onnxruntime"

    def said(*arguments):
        return [line for line in r1v("run", bundle, *arguments).stderr.splitlines() if not line.startswith("sampling:")]

    assert said(*image) == [note]
    assert said("--vision-target", "onnxruntime", *image) == []
    assert said("What is this?") == [], "no image"
    assert "images in int8" in r1v("bench", bundle, "--tokens", "2", "--runs", "1", *image[:2]).stdout
    refused = r1v("run", bundle, "--vision-target", "gguf", *image)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "onnxruntime-int8" in refused.stderr
