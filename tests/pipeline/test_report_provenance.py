"""A report says which bytes were compared: hashes that `sha256sum` gives too, and files unlike the manifest's."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from r1v_export.bundle import Bundle
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.errors import UsageError
from r1v_export.parity.provenance import HashedFiles
from r1v_export.parity.report import read_report
from r1v_export.pipeline import provenance
from r1v_export.pipeline.build import build
from r1v_export.pipeline.report_provenance import of_check
from r1v_export.progress import Progress
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget


def sha256sum(folder: Path, files: HashedFiles) -> str:
    """What GNU coreutils says of the files."""
    names = sorted(files.files)
    listing = subprocess.run(["sha256sum", *names], cwd=folder, check=True, capture_output=True).stdout
    return subprocess.run(["sha256sum"], input=listing, check=True, capture_output=True).stdout.split()[0].decode()


@pytest.mark.parametrize(("epoch", "date"), [("", None), ("1767225600", "2026-01-01T00:00:00+00:00")])
def test_the_report_of_a_build_names_the_bytes_that_it_compared(
    tiny_bundle: Path,
    tiny_config: BuildConfig,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: str,
    date: str | None,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    gate = ParityConfig(questions=1, max_new_tokens=2)
    assert build(tiny_config.model_copy(update={"parity": gate}), tiny_bundle).ran[-1] == "onnxruntime-parity"
    found = read_report(tiny_bundle / "report").provenance
    assert found is not None
    manifest = Bundle.open(tiny_bundle).manifest
    assert (found.model, found.command, found.device) == ("tiny-model", manifest.command, manifest.device)
    assert found.checkpoint.files == manifest.source.files
    assert found.checkpoint.sha256 == sha256sum(tiny_model, found.checkpoint)
    assert found.bundle.sha256 == sha256sum(tiny_bundle, found.bundle)
    assert {path.split("/")[0] for path in found.bundle.files} == {"graphs", "engines"}
    assert found.altered == ()
    assert found.read_back is None
    assert found.date == date, "unless it is asked for, the bytes of a bundle do not depend on when it was built"


def test_a_date_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is no date"):
        provenance.source_date()


def test_a_check_names_the_bytes_that_are_there(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    with (copy / "graphs/projector.data").open("r+b") as file:
        file.write(b"\xff")
    (copy / "graphs/embed.onnx").unlink()
    found = of_check(Bundle.open(copy), ["onnxruntime"], "cpu", "r1v-export check copy", Progress(quiet=True))
    assert found.altered == ("graphs/embed.onnx", "graphs/projector.data")
    assert found.bundle.sha256 == sha256sum(copy, found.bundle)
    assert found.date is not None
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found.date)


def test_a_check_of_files_that_another_library_is_for_says_what_computed_them(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntimeTarget, "read_back", "read back and computed in PyTorch")
    found = of_check(Bundle.open(tiny_bundle), ["onnxruntime"], "cpu", "r1v-export check", Progress(quiet=True))
    assert found.read_back == "read back and computed in PyTorch"


def test_a_check_of_a_pair_names_the_bytes_of_both_engines(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    shutil.copytree(copy / "engines/onnxruntime", copy / "engines/openvino")
    bundle = Bundle.open(copy)
    stages = dict(bundle.manifest.stages)
    one = stages["onnxruntime-engine"]
    files = {name.replace("/onnxruntime/", "/openvino/"): entry for name, entry in one.files.items()}
    stages["openvino-engine"] = one.model_copy(update={"files": files})
    pair = replace(bundle, manifest=bundle.manifest.model_copy(update={"stages": stages}))
    found = of_check(pair, ["onnxruntime", "openvino"], "cpu", "r1v-export check copy", Progress(quiet=True))
    names = {path.split("/")[1] for path in found.bundle.files if path.startswith("engines/")}
    assert names == {"onnxruntime", "openvino"}
    assert found.altered == ()
