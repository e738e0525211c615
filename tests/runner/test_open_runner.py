"""A bundle is opened by what its files say, and refused by what is wrong with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from r1v_export.cli import main
from r1v_export.errors import CheckpointError
from r1v_export.manifest import MANIFEST, hash_file
from r1v_export.reference import open_reference
from r1v_export.runner.open_runner import open_runner
from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def put_subword_prefix(bundle: Path) -> None:
    """The tokenizers library panics on it."""
    prefix = {"continuing_subword_prefix": "torch.float32"}
    rewrite(bundle / "tokenizer.json", lambda definition: definition["model"].update(prefix))


def put_huge_id(bundle: Path) -> None:
    """The tokenizers library allocates memory for all ids up to it."""
    (bundle / "tokenizer.json").unlink()
    rewrite(bundle / "vocab.json", lambda vocab: vocab.update({next(reversed(vocab)): 2**31 - 1}))


def fit_manifest(bundle: Path) -> None:
    """Let the manifest vouch for the files as they are."""

    def fit(manifest: dict[str, Any]) -> None:
        for stage in manifest["stages"].values():
            present = [name for name in stage["files"] if (bundle / name).exists()]
            stage["files"] = {name: hash_file(bundle / name).model_dump(mode="json") for name in present}

    rewrite(bundle / MANIFEST, fit)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What ONNX Runtime was asked to open; it opens nothing."""
    opened: list[object] = []

    def refuse(model: object, *_: object, **__: object) -> None:
        opened.append(model)
        raise RuntimeError("no session is opened in this test")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    return opened


def test_grounding_lets_through_what_the_bundle_lists(nano_bundle: Path) -> None:
    pipeline = json.loads((nano_bundle / "pipeline.json").read_text(encoding="utf-8"))
    listed = {piece["token"]: piece["id"] for piece in pipeline["prompt"]["grounding_tokens"]}
    ids = [listed["<ref>"], listed["</ref>"]]
    grounded, plain = open_runner(nano_bundle, grounding=True).tokenizer, open_runner(nano_bundle).tokenizer
    assert grounded.grounding_tokens == tuple(listed)
    assert grounded.decode(ids) == "<ref></ref>"
    assert plain.grounding_tokens == ()
    assert plain.decode(ids) == ""


HOSTILE = {"a subword prefix": (put_subword_prefix, "tokenizer.json"), "a huge id": (put_huge_id, "vocab.json")}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fits", [False, True], ids=["hashes as built", "hashes made to fit"])
@pytest.mark.parametrize(("change", "file"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_tokenizer_is_refused_whatever_opens_meanwhile(
    change: Callable[[Path], None],
    file: str,
    fits: bool,
    nano_bundle: Path,
    tmp_path: Path,
    sessions: list[object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = Path(shutil.copytree(nano_bundle, tmp_path / "bundle"))
    change(bundle)
    if fits:
        fit_manifest(bundle)
    with pytest.raises(CheckpointError) as caught:
        open_runner(bundle)
    assert str(bundle / file) in str(caught.value.where)
    for options in ([], ["--verify"]):
        assert main.run(["run", str(bundle), "What is it?", *options]) == CheckpointError.exit_code
        printed = capsys.readouterr().err
        assert "error: " in printed
        assert "Traceback" not in printed
        assert file in printed or (options and not fits)  # The hashes are compared first.
    assert sessions


def test_an_untouched_bundle_opens_sessions_to_answer(nano_bundle: Path, sessions: list[object]) -> None:
    assert main.run(["run", str(nano_bundle), "What is it?"]) != 0
    assert sessions


def test_a_damaged_tokenizer_is_refused_before_a_model_is_loaded(
    nano_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(nano_bundle, tmp_path / "bundle"))
    put_subword_prefix(bundle)
    monkeypatch.setattr(open_reference, "open_reference", lambda *_: pytest.fail("the checkpoint was read"))
    monkeypatch.setattr(OnnxRuntimeTarget, "open", lambda *_: pytest.fail("the engine was read"))
    monkeypatch.setattr(OnnxRuntimeTarget, "opens_lazily", False)
    for target in ("pytorch", "onnxruntime"):
        with pytest.raises(CheckpointError):
            open_runner(bundle, target)


@pytest.mark.parametrize("serving", [False, True])
def test_a_server_s_decoder_leaves_the_cores_to_others_between_steps(
    serving: bool, nano_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[bool]()
    monkeypatch.setattr(OnnxRuntimeEngine, "begin_decoder", lambda _, alone: begun.append(alone))
    open_runner(nano_bundle, serving=serving)
    assert begun == [not serving]


FORK = """
import os, sys, time
from pathlib import Path
from r1v_export.opening import is_opening
from r1v_export.runner.open_runner import open_runner
runner = open_runner(Path(sys.argv[1]), decoder_target="openvino")
while is_opening():
    time.sleep(0.01)
if os.fork() == 0:
    runner.ask("How many objects do you see?")
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_process_may_fork_after_it_opened_a_bundle_that_openvino_decodes(int8_inputs_bundle: Path) -> None:
    pytest.importorskip("openvino")
    subprocess.run([sys.executable, "-c", FORK, str(int8_inputs_bundle)], check=True, timeout=120)
