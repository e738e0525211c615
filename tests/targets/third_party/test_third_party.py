"""A package of its own adds a target: built, checked, listed and refused like those of this package."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

from r1v_export.bundle import Bundle
from r1v_export.cli import main
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.manifest import PASSED
from r1v_export.targets import entry_points, registry

NAME = "numpy-archive"
SITE = Path(__file__).parent / "site"


@pytest.fixture(scope="module", autouse=True)
def installed():
    """The package is on the path, with its metadata, as an installation puts it there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SITE)
        entry_points.points.cache_clear()
        yield
    entry_points.points.cache_clear()


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Call it with the entry points that other packages have, instead of those that are installed."""

    def bring(*points: EntryPoint) -> None:
        monkeypatch.setattr(entry_points, "entry_points", lambda group: points)
        entry_points.points.cache_clear()

    yield bring
    entry_points.points.cache_clear()


@pytest.fixture(scope="module")
def build_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("build-file") / "build.yaml"
    fields = {"model": str(tiny_model), "targets": {NAME: {"compress": True}}, "parity": {"questions": 1}}
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture(scope="module")
def bundle(build_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("numpy") / "bundle"
    assert main.run(["build", "--config", str(build_file), "-o", str(out)]) == 0
    return out


def test_its_bundle_passes_the_parity_gate_and_names_the_package(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.targets == (NAME,)
    assert opened.manifest.parity == {NAME: PASSED}
    assert opened.manifest.tools["r1v-numpy-archive"] == "1.0"
    document = json.loads((bundle / "pipeline.json").read_text())
    assert document["engines"][NAME]["files"] == {"weights": "weights.npz"}


def test_its_options_decide_what_is_written_and_are_saved(bundle: Path) -> None:
    with zipfile.ZipFile(bundle / "engines" / NAME / "weights.npz") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}
    assert yaml.safe_load((bundle / "build.yaml").read_text())["targets"] == {NAME: {"compress": True}}


def test_its_bundle_is_verified_and_answers(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["verify", str(bundle)]) == 0
    capsys.readouterr()
    assert main.run(["run", str(bundle), "What?", "--max-new-tokens", "4", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["finish_reason"] == "length"


def test_a_wrong_option_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "build.yaml"
    file.write_text(f"targets: {{{NAME}: {{compres: true}}}}\n")
    assert main.run(["build", "--config", str(file), "-o", str(tmp_path / "out")]) == 2
    assert "did you mean compress?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_it_refuses_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["build", "--target", NAME, "--precision", "fp16", "-o", str(tmp_path / "out")]) == 2
    assert "is in float32" in capsys.readouterr().err


def test_doctor_and_the_error_of_an_unknown_target_list_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor", "--format", "json"]) == 0
    target = json.loads(capsys.readouterr().out)["targets"][NAME]
    assert target["ready"]
    assert "numpy" in target["found"]
    with pytest.raises(UsageError) as error:
        registry.get_target("numpy-archiv")
    assert NAME in str(error.value.expected)


def test_without_the_package_its_bundle_says_what_is_missing(
    bundle: Path, brought: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    brought()
    assert main.run(["run", str(bundle), "What?"]) == 2
    assert f"found:    '{NAME}'" in capsys.readouterr().err


def test_a_package_that_brings_a_name_that_is_taken_is_refused(brought: Callable[..., None]) -> None:
    taken = EntryPoint(entry_points.DEFAULT, "r1v_numpy_archive.target:NumpyArchiveTarget", entry_points.GROUP)
    brought(taken)
    with pytest.raises(UsageError, match="Two packages"):
        registry.get_target(entry_points.DEFAULT)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("r1v_no_such_package:Target", "cannot be imported"),
        ("r1v_numpy_archive.target:NoSuchClass", "cannot be imported"),
        ("r1v_numpy_archive.config:NumpyArchiveConfig", "is not a target class"),
    ],
)
def test_a_package_that_brings_no_target_is_named_and_stops_nothing_else(
    value: str, complaint: str, brought: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    brought(EntryPoint("broken", value, entry_points.GROUP))
    with pytest.raises(CapabilityError) as error:
        registry.get_target("broken")
    assert complaint in error.value.what
    assert main.run(["doctor", "--format", "json"]) == 0
    targets = json.loads(capsys.readouterr().out)["targets"]
    assert not targets["broken"]["ready"]
    assert targets[entry_points.DEFAULT]["ready"]


def test_installed_packages_are_searched_once(monkeypatch: pytest.MonkeyPatch, brought: Callable[..., None]) -> None:
    brought()
    searched: list[str] = []
    monkeypatch.setattr(entry_points, "entry_points", lambda group: searched.append(group) or ())
    for name in entry_points.names():
        registry.get_target(name)
    assert searched == [entry_points.GROUP]
