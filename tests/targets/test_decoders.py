"""What decodes the answers to a bundle's questions, on machines with and without what is faster."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from r1v_export.bundle import Bundle
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.errors import BundleError, CapabilityError, UsageError
from r1v_export.manifest import PASSED
from r1v_export.pipeline.build import build
from r1v_export.runner.kv_cache import KVCache
from r1v_export.runner.open_runner import open_runner
from r1v_export.targets.decoders import choose_decoder, decoder_part, lending_target
from r1v_export.targets.images import AUTO, named_pair
from r1v_export.targets.openvino.engine_file import read_engine_file
from r1v_export.targets.openvino.target import OpenVinoTarget

PAIR = named_pair("onnxruntime", decoder="openvino")
TARGET = "r1v_export.targets.openvino.target"


@pytest.fixture(scope="module")
def built(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BuildConfig(model=str(tiny_model), precision="int4", recipe="int4-rtn", parity=ParityConfig(enabled=False))
    return build(config, tmp_path_factory.mktemp("int4") / "bundle").out


@pytest.fixture
def bundle(tmp_path: Path, built: Path) -> Path:
    """A tiny model in INT4 for ONNX Runtime, as a machine wrote it whose gate passed."""
    copy = Path(shutil.copytree(built, tmp_path / "bundle"))
    write_verdict(copy, PASSED)
    return copy


@pytest.fixture
def runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU without AMX, as far as verdicts know."""
    monkeypatch.setattr(OpenVinoTarget, "why_not_decoder", lambda _: None)
    monkeypatch.setattr(f"{TARGET}.has_bfloat16_tiles", lambda: False)


def write_verdict(bundle: Path, verdict: str | None, pair: str = PAIR) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["decoder_parity"] = {} if verdict is None else {pair: verdict}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def chosen(bundle: Path, asked: str | None = AUTO, device: str = "cpu") -> tuple[str | None, str | None]:
    found = choose_decoder(Bundle.open(bundle), "onnxruntime", asked, device)
    return found.part and found.part.name, found.note


def why(bundle: Path, asked: str | None = AUTO) -> str:
    return choose_decoder(Bundle.open(bundle), "onnxruntime", asked, "cpu").why


def test_a_bundle_in_int4_has_the_graph_and_no_second_weights(built: Path, nano_bundle: Path) -> None:
    part = decoder_part(built, "onnxruntime")
    assert part is not None
    assert sorted(path.name for path in part.folder.iterdir()) == ["decoder.onnx", "engine.json"]
    assert sum(path.stat().st_size for path in part.folder.iterdir()) < 50_000
    assert decoder_part(nano_bundle, "onnxruntime") is None
    assert why(nano_bundle) == "nothing else decodes for this engine"


def test_the_head_is_the_one_in_8_bits_that_the_engine_has(built: Path) -> None:
    part = decoder_part(built, "onnxruntime")
    assert part is not None
    weights = read_engine_file(part.folder).weights["decoder"]
    head = {name: each for name, each in weights.items() if each.file == "engines/onnxruntime/decoder.data"}
    assert sorted((name.rsplit("/")[-1], each.type) for name, each in head.items()) == [
        ("qweight", "i8"),
        ("scale", "f32"),
    ]
    hidden, vocab = Bundle.open(built).spec.sizes.hidden, Bundle.open(built).spec.sizes.vocab
    assert not [name for name, each in weights.items() if each.type == "f32" and each.shape == (hidden, vocab)]


@pytest.mark.usefixtures("runs_here")
def test_a_verdict_is_that_of_processors_which_compute_the_same(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{TARGET}.has_bfloat16_tiles", lambda: True)
    assert why(bundle) == "openvino in bfloat16 is here, but no gate has compared it"
    write_verdict(bundle, PASSED, f"{PAIR} in bfloat16")
    note = "decoder: openvino in bfloat16, which is faster here; not with --decoder-target onnxruntime"
    assert chosen(bundle) == ("openvino", note)
    monkeypatch.setattr(f"{TARGET}.has_bfloat16_tiles", lambda: False)
    assert why(bundle) == "openvino is here, but no gate has compared it"


@pytest.mark.usefixtures("runs_here")
def test_auto_takes_the_faster_one_where_its_gate_passed(bundle: Path) -> None:
    note = "decoder: openvino, which is faster here; not with --decoder-target onnxruntime"
    assert chosen(bundle) == ("openvino", note)
    assert chosen(bundle, device="cuda") == (None, None)
    assert chosen(bundle, None) == (None, None)
    assert why(bundle, None) == "one question gains less than opening another one takes"


@pytest.mark.usefixtures("runs_here")
@pytest.mark.parametrize("verdict", [None, "its gate failed at prefill", "openvino is not installed"])
def test_auto_takes_nothing_that_no_gate_has_passed(bundle: Path, verdict: str | None) -> None:
    write_verdict(bundle, verdict)
    assert chosen(bundle) == (None, None)
    assert (verdict or "no gate") in why(bundle)


@pytest.mark.parametrize(
    ("installed", "products", "reason"),
    [(None, True, "openvino is not installed"), ("a spec", False, "this CPU has no bfloat16 products")],
)
def test_auto_is_silent_where_nothing_faster_runs(
    bundle: Path, installed: str | None, products: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1v_export.targets.openvino.target.find_spec", lambda _: installed)
    monkeypatch.setattr("r1v_export.targets.openvino.target.has_bfloat16_products", lambda: products)
    assert chosen(bundle) == (None, None)
    assert why(bundle) == reason


@pytest.mark.usefixtures("runs_here")
def test_what_is_asked_for_is_taken_and_warned_of_if_no_gate_has_passed(bundle: Path) -> None:
    assert chosen(bundle, "onnxruntime") == (None, None)
    assert chosen(bundle, "openvino") == ("openvino", None)
    write_verdict(bundle, "its gate failed at prefill")
    name, note = chosen(bundle, "openvino")
    assert name == "openvino"
    assert note is not None
    assert note.startswith("warning: decoding by openvino is not compared with PyTorch (its gate failed at prefill)")
    assert f"r1v-export check {bundle} --decoder-target openvino" in note


def test_what_the_engine_has_no_part_for_is_refused(bundle: Path, nano_bundle: Path) -> None:
    for folder, asked, expected in (
        (bundle, "gguf", "auto, onnxruntime, openvino"),
        (nano_bundle, "openvino", "auto, onnxruntime"),
    ):
        with pytest.raises(UsageError, match="cannot be decoded by this target") as error:
            chosen(folder, asked)
        assert error.value.expected == expected
    with pytest.raises(CapabilityError, match="onnxruntime"):
        lending_target("onnxruntime")


def test_a_part_that_is_not_whole_is_named(bundle: Path) -> None:
    pytest.importorskip("openvino")
    part = decoder_part(bundle, "onnxruntime")
    assert part is not None
    (part.folder / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match="incomplete"):
        part.open(bundle, Bundle.open(bundle).spec)


@pytest.mark.usefixtures("runs_here")
def test_answers_are_decoded_by_the_part(bundle: Path) -> None:
    pytest.importorskip("openvino")
    both, alone = (open_runner(bundle, decoder_target=target).engine for target in (AUTO, "onnxruntime"))
    assert (both.name, alone.name) == (PAIR, "onnxruntime")
    embeds = np.random.default_rng(0).standard_normal((1, 40, both.sizes.hidden)).astype(np.float32)
    caches = [KVCache(engine.decoder(1, 64)) for engine in (both, alone)]
    prompt = [cache.append(embeds[:, :30], np.array([30])) for cache in caches]
    assert not np.array_equal(*prompt), "rounded in different ways"
    assert np.linalg.norm(prompt[0] - prompt[1]) < 0.05 * np.linalg.norm(prompt[1])
    step = [cache.append(embeds[:, 30:31], np.array([1])) for cache in caches]
    assert np.linalg.norm(step[0] - step[1]) < 0.05 * np.linalg.norm(step[1])


@pytest.mark.usefixtures("runs_here")
def test_a_library_that_does_not_load_leaves_the_decoder_to_the_engine(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise CapabilityError("The target openvino cannot be used.", found="openvino does not load")

    monkeypatch.setattr(OpenVinoTarget, "open_decoder", fails)
    both, alone = (open_runner(bundle, decoder_target=target).engine for target in (AUTO, "onnxruntime"))
    embeds = np.random.default_rng(0).standard_normal((1, 30, both.sizes.hidden)).astype(np.float32)
    one, other = (KVCache(engine.decoder(1, 64)).append(embeds, np.array([30])) for engine in (both, alone))
    np.testing.assert_array_equal(one, other)
    assert "answers are not decoded by openvino" in caplog.text
    with pytest.raises(CapabilityError):
        open_runner(bundle, decoder_target="openvino").engine.decoder(1, 64)


@pytest.mark.usefixtures("runs_here")
def test_an_operator_that_attends_otherwise_leaves_the_decoder_to_the_engine(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    from r1v_export.targets.openvino.runtime import paged_attention

    monkeypatch.setattr(paged_attention, "_difference", lambda *_: 0.5)
    paged_attention.require_paged_attention.cache_clear()
    both, alone = (open_runner(bundle, decoder_target=target).engine for target in (AUTO, "onnxruntime"))
    embeds = np.random.default_rng(0).standard_normal((1, 30, both.sizes.hidden)).astype(np.float32)
    one, other = (KVCache(engine.decoder(1, 64)).append(embeds, np.array([30])) for engine in (both, alone))
    np.testing.assert_array_equal(one, other)
    assert both.cache_limits() == alone.cache_limits()
    assert "answers are not decoded by openvino: This version of OpenVINO has no paged attention" in caplog.text
    with pytest.raises(CapabilityError, match="paged attention"):
        open_runner(bundle, decoder_target="openvino").engine.decoder(1, 64)
