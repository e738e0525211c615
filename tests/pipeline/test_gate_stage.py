"""What a build finds out about engines that do another one's work, on machines that can compare them, and others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from r1v_export.bundle import Bundle
from r1v_export.cli import main
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.errors import BundleError, CapabilityError
from r1v_export.parity.report import read_report
from r1v_export.pipeline.build import build
from r1v_export.pipeline.verify import verify_bundle
from r1v_export.progress import Progress
from r1v_export.runner.open_runner import open_runner
from r1v_export.runner.paired_engine import PairedEngine
from r1v_export.targets.decoders import choose_decoder
from r1v_export.targets.images import AUTO, choose, named_pair
from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget
from r1v_export.targets.openvino.doctor import has_bfloat16
from r1v_export.targets.openvino.target import OpenVinoTarget

PAIR = named_pair("onnxruntime", images="openvino")
INT8_PAIR = named_pair("onnxruntime", images="onnxruntime in int8")
DECODER_PAIR = named_pair("onnxruntime", decoder="openvino")


def test_a_build_compares_images_by_another_engine_where_it_can(
    tiny_config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bundle, on a machine without OpenVINO, on one that has it, and on one whose OpenVINO computes wrongly."""
    pytest.importorskip("openvino")
    from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine

    config = tiny_config.model_copy(update={"parity": ParityConfig(questions=1, max_new_tokens=2)})

    def built(lacks: str | None) -> Bundle:
        monkeypatch.setattr(OpenVinoTarget, "why_not_images", lambda *_: lacks)
        done = build(config, tmp_path / "out")
        verify_bundle(done.out, Progress(quiet=True))
        return Bundle.open(done.out)

    def chosen(bundle: Bundle) -> bool:
        return choose(bundle, "onnxruntime", AUTO, "cpu").encoder is not None

    report = tmp_path / "out/report/images"
    without = built("openvino is not installed")
    assert without.manifest.image_parity == {PAIR: "openvino is not installed"}
    assert not report.exists()
    assert not chosen(without)

    passed = built(None)
    assert passed.manifest.image_parity == {PAIR: "passed"}
    found = read_report(report)
    assert (found.gate, found.candidate, found.profile) == ("images", PAIR, "bf16")
    assert found.title == "With images encoded apart, it computes what PyTorch computes"
    assert chosen(passed)
    one, other = (
        {path: file for path, file in each.manifest.files.items() if "engines/" in path} for each in (without, passed)
    )
    assert one == other

    run = OpenVinoEngine.vision
    monkeypatch.setattr(OpenVinoEngine, "vision", lambda self, pixels: np.zeros_like(run(self, pixels)))
    (report / "parity.json").unlink()  # the stage is not done then, and is run again
    failed = built(None)
    assert failed.manifest.image_parity == {PAIR: "its gate failed at vision"}
    assert failed.manifest.parity == {"onnxruntime": "passed"}
    assert "So images are encoded by the engine that answers" in (report / "parity.html").read_text()
    assert not chosen(failed)


def test_images_out_of_tolerance_in_8_bits_are_compared_in_bfloat16(
    tiny_config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine

    config = tiny_config.model_copy(update={"parity": ParityConfig(questions=1, max_new_tokens=2)})
    monkeypatch.setattr(OpenVinoTarget, "why_not_images", lambda *_: None)
    monkeypatch.setattr(OnnxRuntimeTarget, "chosen_image_products", lambda *_: ("int8", "bfloat16"))
    caplog.set_level("INFO")
    first = Bundle.open(build(config, tmp_path / "out").out)
    report = read_report(tmp_path / "out/report/images")
    assert (report.candidate, report.profile) == (f"{PAIR} in int8", "8-bit inputs")
    assert report.rounded_inputs is not None
    assert report.rounded_inputs.sentence.startswith(
        "weights and inputs of the vision tower are rounded to int8, which the error"
    )
    assert first.manifest.image_parity == {f"{PAIR} in int8": "passed"}

    run = OpenVinoEngine.vision

    def vision(self: OpenVinoEngine, pixels: np.ndarray) -> np.ndarray:
        return run(self, pixels) * (0.9 if self._image_products == "int8" else 1.0)

    monkeypatch.setattr(OpenVinoEngine, "vision", vision)
    (tmp_path / "out/report/images/parity.json").unlink()
    second = Bundle.open(build(config, tmp_path / "out").out)
    assert second.manifest.image_parity == {PAIR: "passed"}
    assert read_report(tmp_path / "out/report/images").profile == "bf16"
    assert "images by openvino in int8 are out of tolerance at vision: comparing openvino" in caplog.text
    encoder = choose(second, "onnxruntime", AUTO, "cpu").encoder
    assert encoder is not None
    assert encoder.products == "bfloat16"


def test_without_a_faster_library_the_engine_encodes_images_in_8_bits_where_that_was_compared(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bundle in INT4, on a processor that nobody measured, on an x86 one, and on one that computes wrongly."""
    gate = ParityConfig(questions=1, max_new_tokens=2)
    config = BuildConfig(model=str(tiny_model), precision="int4", recipe="int4-rtn", parity=gate)
    for name in ("why_not_images", "why_not_decoder"):
        monkeypatch.setattr(OpenVinoTarget, name, lambda *_: "openvino is not installed")

    def built(*, x86: bool) -> Bundle:
        monkeypatch.setattr("r1v_export.targets.onnxruntime.target.is_x86", lambda: x86)
        done = build(config, tmp_path / "out")
        verify_bundle(done.out, Progress(quiet=True))
        return Bundle.open(done.out)

    def chosen(bundle: Bundle, asked: str = AUTO) -> str | None:
        encoder = choose(bundle, "onnxruntime", asked, "cpu").encoder
        return encoder and encoder.title

    elsewhere = built(x86=False)
    assert elsewhere.manifest.image_parity == {
        f"{PAIR} in int8": "openvino is not installed",
        PAIR: "openvino is not installed",
        INT8_PAIR: "images in 8 bits by onnxruntime are for x86 CPUs",
    }
    assert chosen(elsewhere) is None

    passed = built(x86=True)
    assert passed.manifest.image_parity == elsewhere.manifest.image_parity | {INT8_PAIR: "passed"}
    report = read_report(tmp_path / "out/report/images")
    assert (report.candidate, report.profile) == (INT8_PAIR, "8-bit inputs")
    assert report.rounded_inputs is not None
    assert "weights and inputs of the vision tower are rounded to int8" in report.rounded_inputs.sentence
    (error,) = [each.metrics["relative_error"] for each in report.boundaries if each.name == "vision"]
    assert error > 1e-4, "the engine's own images were compared"
    assert chosen(passed) == chosen(passed, "onnxruntime-int8") == "onnxruntime in int8"
    assert chosen(passed, "onnxruntime") is None, "exact"
    note = choose(passed, "onnxruntime", AUTO, "cpu").note
    assert note == "images: by onnxruntime, in int8, which is faster here; exact with --vision-target onnxruntime"
    runner = open_runner(passed.folder)
    assert runner.name == INT8_PAIR
    assert isinstance(runner.engine, PairedEngine)
    assert runner.engine.images is not runner.engine.engine
    one, other = (
        {path: file for path, file in each.manifest.files.items() if "engines/" in path} for each in (elsewhere, passed)
    )
    assert one == other

    run = OnnxRuntimeEngine.vision

    def wrong(self: OnnxRuntimeEngine, pixels: np.ndarray) -> np.ndarray:
        return run(self, pixels) * (0.9 if "images" in self.folder.parts else 1.0)

    monkeypatch.setattr(OnnxRuntimeEngine, "vision", wrong)
    (tmp_path / "out/report/images/parity.json").unlink()
    failed = built(x86=True)
    assert failed.manifest.image_parity[INT8_PAIR] == "its gate failed at vision"
    assert failed.manifest.parity == {"onnxruntime": "passed"}
    assert chosen(failed) is None
    (passed.folder / "engines/onnxruntime/images/onnxruntime/projector.onnx").unlink()
    with pytest.raises(BundleError, match=r"no projector\.onnx"):
        open_runner(passed.folder, vision_target="onnxruntime-int8").engine.projector(np.zeros((1, 1, 1), np.float32))


def test_what_runs_here_decides_whether_images_are_compared_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle in INT4 that goes from a processor without bfloat16 to one with it, and back."""
    pytest.importorskip("openvino")
    gate = ParityConfig(questions=1, max_new_tokens=2)
    config = BuildConfig(model=str(tiny_model), precision="int4", recipe="int4-rtn", parity=gate)
    monkeypatch.setattr(OpenVinoTarget, "why_not_decoder", lambda _: "decoders are compared elsewhere")
    verdicts = {}
    for lacks in ("no bfloat16", None, "no bfloat16"):
        monkeypatch.setattr(OpenVinoTarget, "why_not_images", lambda *_, lacks=lacks: lacks)
        verdicts[lacks] = Bundle.open(build(config, tmp_path / "out").out).manifest.image_parity
        if lacks is not None:
            assert verdicts[lacks] == {f"{PAIR} in int8": lacks, PAIR: lacks, INT8_PAIR: "passed"}
    assert verdicts[None] == {f"{PAIR} in int8": "passed"}
    check = ["check", str(tmp_path / "out"), "--model", str(tiny_model), "--questions", "1", "--max-new-tokens", "2"]
    monkeypatch.setattr(OpenVinoTarget, "why_not_images", lambda *_: None)
    for asked, pair in (("onnxruntime-int8", INT8_PAIR), ("openvino-bfloat16", PAIR), ("openvino", f"{PAIR} in int8")):
        assert main.run([*check, "--vision-target", asked]) == 0
        assert read_report(tmp_path / "out/report/local").candidate == pair


def test_a_build_compares_another_decoder_where_it_can(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bundle in INT4, on a machine without OpenVINO, on one that has it, and on one whose OpenVINO is wrong."""
    pytest.importorskip("openvino")
    from r1v_export.targets.openvino.runtime.paged_decoder import PagedDecoder

    gate = ParityConfig(questions=1, max_new_tokens=2)
    config = BuildConfig(model=str(tiny_model), precision="int4", recipe="int4-rtn", parity=gate)
    in_tiles = "r1v_export.targets.openvino.target.has_bfloat16_tiles"
    monkeypatch.setattr(in_tiles, lambda: False)

    def built(lacks: str | None) -> Bundle:
        for name in ("why_not_images", "why_not_decoder"):
            monkeypatch.setattr(OpenVinoTarget, name, lambda *_: lacks)
        done = build(config, tmp_path / "out")
        verify_bundle(done.out, Progress(quiet=True))
        return Bundle.open(done.out)

    def chosen(bundle: Bundle) -> bool:
        return choose_decoder(bundle, "onnxruntime", AUTO, "cpu").part is not None

    report = tmp_path / "out/report/decoder"
    without = built("openvino is not installed")
    assert without.manifest.decoder_parity == {DECODER_PAIR: "openvino is not installed"}
    assert not report.exists()
    assert not chosen(without)

    run, tokens, decoders = PagedDecoder.step, set[int](), set[tuple[int, bool]]()
    monkeypatch.setattr("r1v_export.targets.openvino.runtime.model.has_bfloat16_tiles", lambda: True)

    def noting(self: PagedDecoder, embeds: np.ndarray, *others: np.ndarray) -> np.ndarray:
        tokens.add(embeds.shape[1])
        decoders.add((self.batch, self._one_token))
        return run(self, embeds, *others)

    monkeypatch.setattr(PagedDecoder, "step", noting)
    passed = built(None)
    assert max(tokens) >= OpenVinoTarget.prompt_tokens, "so long a prompt may have a graph of its own"
    assert decoders == {(1, has_bfloat16()), (2, False)}, (
        "one sequence has a graph of its own, and a server's is compared, too"
    )
    assert passed.manifest.decoder_parity == {DECODER_PAIR: "passed"}
    found = read_report(report)
    assert (found.gate, found.profile) == ("decoder", "8-bit inputs")
    assert found.candidate == named_pair("onnxruntime", images="openvino in int8", decoder="openvino")
    assert found.title == "With the decoder of another engine, it computes what PyTorch computes"
    assert found.rounded_inputs is not None
    assert found.rounded_inputs.engines == ("onnxruntime", "openvino")
    assert chosen(passed)

    monkeypatch.setattr(in_tiles, lambda: True)  # a processor that computes otherwise
    assert not chosen(passed)
    elsewhere = built(None)
    assert elsewhere.manifest.decoder_parity == {f"{DECODER_PAIR} in bfloat16": "passed"}
    assert chosen(elsewhere)
    monkeypatch.setattr(in_tiles, lambda: False)

    def wrong(self: PagedDecoder, *arguments: np.ndarray) -> np.ndarray:
        return run(self, *arguments) + np.arange(self.sizes.vocab, dtype=np.float32)

    monkeypatch.setattr(PagedDecoder, "step", wrong)
    (report / "parity.json").unlink()  # the stage is not done then, and is run again
    failed = built(None)
    assert failed.manifest.decoder_parity == {DECODER_PAIR: "its gate failed at prefill"}
    assert failed.manifest.image_parity == {f"{PAIR} in int8": "passed"}
    assert failed.manifest.parity == {"onnxruntime": "passed"}
    assert "So answers are decoded by the engine itself" in (report / "parity.html").read_text()
    assert not chosen(failed)


def test_a_decoder_of_exact_inputs_is_compared_by_the_limits_of_bfloat16(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(OpenVinoTarget, "why_not_decoder", lambda _: None)
    monkeypatch.setattr(OpenVinoTarget, "why_not_images", lambda *_: "images are compared elsewhere")
    gate, exact = ParityConfig(questions=1, max_new_tokens=2), {"onnxruntime": {"int4_inputs": "exact"}}
    config = BuildConfig(model=str(tiny_model), precision="int4", recipe="int4-rtn", parity=gate, targets=exact)
    bundle = Bundle.open(build(config, tmp_path / "out").out)
    assert bundle.manifest.decoder_parity == {f"{DECODER_PAIR} in bfloat16": "passed"}
    assert read_report(bundle.folder / "report/decoder").profile == "bf16"


def test_a_library_without_paged_attention_fails_no_build(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    from r1v_export.targets.openvino.runtime import paged_attention

    def lacking(*_: object) -> None:
        raise CapabilityError("This version of OpenVINO has no paged attention that can be used.")

    monkeypatch.setattr(paged_attention, "require_paged_attention", lacking)
    monkeypatch.setattr("r1v_export.targets.openvino.target.has_bfloat16_tiles", lambda: False)
    monkeypatch.setattr(OpenVinoTarget, "why_not_decoder", lambda _: None)
    gate = ParityConfig(questions=1, max_new_tokens=2)
    config = BuildConfig(model=str(tiny_model), precision="int4", recipe="int4-rtn", parity=gate)
    bundle = Bundle.open(build(config, tmp_path / "out").out)
    assert bundle.manifest.parity == {"onnxruntime": "passed"}
    assert bundle.manifest.decoder_parity == {DECODER_PAIR: "the machine that compared the engine could not"}
    assert "the decoder of openvino is not compared: This version of OpenVINO has no paged attention" in caplog.text
    assert choose_decoder(bundle, "onnxruntime", AUTO, "cpu").part is None
    check = ["check", str(bundle.folder), "--model", str(tiny_model), "--questions", "1", "--max-new-tokens", "2"]
    assert main.run(check) == 0
    assert main.run([*check, "--decoder-target", "openvino"]) == CapabilityError.exit_code


def test_a_build_without_gates_vouches_for_no_pair(tiny_built: Path) -> None:
    manifest = Bundle.open(tiny_built).manifest
    assert manifest.image_parity == {PAIR: "omitted (--no-parity)"}
    assert manifest.decoder_parity == {}, "in float32 nothing else decodes"
