"""Weights that are not quantized are written once, however many Hugging Face folders a bundle has, and where wanted not
at all: files are hard links."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1v_export.build_file import load_config
from r1v_export.bundle import BUILD_CONFIG, ENGINES
from r1v_export.cli.main import run
from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.files import hard_link
from r1v_export.pipeline import reused_weights
from r1v_export.pipeline.build import build, plan
from r1v_export.pipeline.verify import verify_bundle
from r1v_export.progress import Progress
from r1v_export.targets import hub_folder, reused_files

HUB = ("hf-unified", "compressed-tensors")
OWN = "unquantized-00001-of-00001.safetensors"
TOWER = "source-model-00001-of-00002.safetensors"


def config_of(model: Path, *targets: str, link: bool = False) -> BuildConfig:
    return BuildConfig(
        model=str(model),
        precision="int4",
        recipe="int4-rtn",
        targets={name: {} for name in targets},
        link_weights=link,
        parity=ParityConfig(enabled=False),
    )


@pytest.fixture(scope="module")
def split_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with all that int4-rtn leaves alone, but for the norms, in a file of its own."""
    folder = tmp_path_factory.mktemp("split") / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tiny_model / "model.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    file_of = {name: names[name.startswith("language_model.model.layers")] for name in tensors}
    for file in names:
        save_file({name: tensors[name] for name in tensors if file_of[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    return folder


@pytest.fixture(scope="module")
def alone(split_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The engine of each target, built by itself."""
    out = tmp_path_factory.mktemp("alone")
    return {name: build(config_of(split_model, name), out / name).out / ENGINES / name for name in HUB}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()):
        found |= load_file(folder / file)
    return found


def assert_same_tensors(first: Path, second: Path) -> None:
    found, expected = tensors_of(first), tensors_of(second)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype, name
        assert torch.equal(found[name].view(torch.uint8), expected[name].view(torch.uint8)), name


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_second_folder_has_the_unquantized_weights_of_the_first(
    links: bool,
    split_model: Path,
    alone: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tree: Callable[[Path], dict[str, bytes]],
) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    computed: list[str] = []
    part_of = hub_folder.part_of

    def record(*arguments: object) -> list[torch.Tensor]:
        computed.append("tensor")
        return part_of(*arguments)  # type: ignore[arg-type]

    if not links:
        monkeypatch.setattr(reused_files, "hard_link", refuse)
    monkeypatch.setattr(hub_folder, "part_of", record)
    out = build(config_of(split_model, *HUB), tmp_path / "out").out
    first, second = (out / ENGINES / name for name in HUB)
    assert len(computed) == len(load_file(first / OWN)), "each is read for the first folder alone"
    assert (first / OWN).samefile(second / OWN) is links
    assert {name: tree(out / ENGINES / name) for name in HUB} == {name: tree(alone[name]) for name in HUB}
    verify_bundle(out, Progress(quiet=True))


def test_the_plan_counts_them_once(split_model: Path, tmp_path: Path) -> None:
    both = plan(config_of(split_model, *HUB), tmp_path / "both")
    (one,) = (row for row in plan(config_of(split_model, HUB[1]), tmp_path / "one") if row.name.endswith("-engine"))
    (second,) = (row for row in both if row.name == one.name)
    sizes = {name: t.nbytes for name, t in load_file(split_model / TOWER.removeprefix("source-")).items()}
    norms = load_file(split_model / "model-00002-of-00002.safetensors")
    unquantized = sum(sizes.values()) + sum(t.nbytes for name, t in norms.items() if t.ndim == 1)
    assert one.size_bytes - second.size_bytes == unquantized


def die_behind_the_link(config: BuildConfig, out: Path) -> None:
    def link_and_die(source: Path, target: Path) -> None:
        hard_link(source, target)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reused_files, "hard_link", link_and_die)
        build(config, out)


@pytest.mark.parametrize("link", [False, True], ids=["sibling", "source"])
def test_killed_behind_a_link_the_build_ends_in_the_same_bytes_and_writes_into_no_linked_file(
    link: bool, split_model: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    config, source = config_of(split_model, *HUB, link=link), tree(split_model)
    expected = tree(build(config, tmp_path / "undisturbed").out)
    child = multiprocessing.get_context("fork").Process(target=die_behind_the_link, args=(config, tmp_path / "out"))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert tree(build(config, tmp_path / "out").out) == expected
    assert tree(split_model) == source


def test_weight_files_of_the_checkpoint_are_linked_where_they_stay_as_they_are(
    split_model: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    out = build(config_of(split_model, *HUB, link=True), tmp_path / "out").out
    for name in HUB:
        engine = out / ENGINES / name
        assert (engine / TOWER).samefile(split_model / TOWER.removeprefix("source-"))
        vectors = {name for name, t in tensors_of(split_model).items() if ".layers.0." in name and t.ndim == 1}
        assert load_file(engine / OWN).keys() == {name for name in vectors if name.startswith("language_model")}
        assert_same_tensors(engine, alone[name])
    verify_bundle(out, Progress(quiet=True))
    saved = load_config(out / BUILD_CONFIG, {})
    assert saved.link_weights
    assert "--link-weights" in saved.command


def test_the_plan_does_not_count_linked_files(split_model: Path, tmp_path: Path) -> None:
    sizes = [
        next(
            row.size_bytes
            for row in plan(config_of(split_model, HUB[0], link=link), tmp_path / "out")
            if "engine" in row.name
        )
        for link in (False, True)
    ]
    assert sizes[0] - sizes[1] == (split_model / TOWER.removeprefix("source-")).stat().st_size


def test_links_are_refused_where_a_target_stores_weights_otherwise(split_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stores weights in another layout") as caught:
        plan(config_of(split_model, HUB[0], "onnxruntime", link=True), tmp_path / "out")
    assert caught.value.found == "onnxruntime"


def test_links_are_refused_where_every_file_holds_quantized_weights(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="each holds tensors that are quantized") as caught:
        build(config_of(tiny_model, HUB[0], link=True), tmp_path / "out")
    assert "model.safetensors with language_model" in str(caught.value.found)
    assert not (tmp_path / "out").exists()


def test_links_are_refused_across_file_systems(
    split_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(split_model, HUB[0], link=True)

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    with monkeypatch.context() as patch:
        patch.setattr(reused_files, "hard_link", refuse)
        with pytest.raises(CapabilityError, match="cannot be linked into the bundle") as caught:
            build(config, tmp_path / "out")
    assert caught.value.found == "Invalid cross-device link"
    monkeypatch.setattr(reused_weights, "_device", lambda path: str(path).startswith(str(tmp_path)))
    with pytest.raises(CapabilityError, match="another file system"):
        plan(config, tmp_path / "other")


def test_rewritten_tensors_are_not_the_checkpoints(split_model: Path, tmp_path: Path) -> None:
    """AWQ's scales go into norms: none of their files is linked, not even where they are float32 in the checkpoint."""
    names = load_file(split_model / "model-00002-of-00002.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    for path in split_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    norms = {name: tensor.float() for name, tensor in names.items() if tensor.ndim == 1}
    save_file(norms, folder / "norms.safetensors", {"format": "pt"})
    save_file(
        {name: tensor for name, tensor in names.items() if tensor.ndim > 1},
        folder / "model-00002-of-00002.safetensors",
        {"format": "pt"},
    )
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(norms, "norms.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = config_of(folder, HUB[0], link=True)
    config = config.model_copy(update={"recipe": "int4-awq", "calibration": CalibrationConfig(samples=2)})
    engine = build(config, tmp_path / "out").out / ENGINES / HUB[0]
    assert [path.name for path in engine.glob("source-*")] == [TOWER]
    assert load_file(engine / OWN).keys() == norms.keys()


def test_the_option_reaches_the_config(split_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", str(split_model), "--recipe", "int4-rtn", "--target", HUB[0], "--link-weights", "--dry-run"]
    assert run([*arguments, "-o", str(tmp_path / "out"), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["stages"]
    (engine,) = (row for row in rows if row["name"].endswith("-engine"))
    expected = plan(config_of(split_model, HUB[0], link=True), tmp_path / "out")
    assert engine["size_bytes"] == next(row.size_bytes for row in expected if row.name == engine["name"])
