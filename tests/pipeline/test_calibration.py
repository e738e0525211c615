"""A build's calibration: what its fingerprint follows, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, CalibrationConfig
from r1v_export.errors import UsageError
from r1v_export.pipeline.calibration import calibration_options, calibration_set, chosen_recipe, data_digest
from r1v_export.pipeline.calibration_samples import calibration_examples
from r1v_export.pipeline.provenance import PACKAGE
from r1v_export.pipeline.sharded_calibration import calibrate as calibrate_here_or_in_shards
from r1v_export.pipeline.stages import CALIBRATION_STAGE, Build
from r1v_export.progress import ignore_progress
from r1v_export.quantization.calibration.activations import SAVED_BY_DEFAULT
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.shards import collect_shard
from r1v_export.quantization.recipe import load


def write_set(path: Path, *images: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"image": image, "prompt": "What?"}) + "\n" for image in images))
    return path


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("where", ["inside", "parent", "absolute", "linked"])
def test_a_named_image_that_changes_changes_the_digest(tmp_path: Path, where: str, as_folder: bool) -> None:
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "link").symlink_to(elsewhere)
    places = {
        "inside": ("x.png", folder),
        "parent": ("../elsewhere/x.png", elsewhere),
        "absolute": (f"{elsewhere}/x.png", elsewhere),
        "linked": ("link/x.png", elsewhere),
    }
    name, holder = places[where]
    source = write_set(folder / "set.jsonl", name)
    (holder / "x.png").write_bytes(b"one")
    data = str(folder if as_folder else source)
    before = data_digest(data)
    assert data_digest(data) == before
    (holder / "x.png").write_bytes(b"two")
    assert data_digest(data) != before


def test_a_file_that_no_line_names_does_not_count_outside_the_folder(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set" / "set.jsonl", "../x.png")
    (tmp_path / "x.png").write_bytes(b"one")
    before = data_digest(str(source))
    (tmp_path / "y.png").write_bytes(b"two")
    assert data_digest(str(source)) == before


def test_lines_and_names_that_cannot_be_used_are_left_to_the_reader(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set" / "set.jsonl", "../missing.png", "/dev/zero", "x" * 5000, "..")
    with source.open("a") as file:
        file.write('{"image": 3}\nno JSON\n')
    assert data_digest(str(source))


def test_the_code_that_chooses_samples_is_in_the_fingerprint_of_a_calibration(tmp_path: Path) -> None:
    build = Build(BuildConfig(precision="fp8"), Checkpoint.open("r1v-nano"), tmp_path)
    (stage,) = (stage for stage in build.stages() if stage.name == CALIBRATION_STAGE)
    for function in (calibrate_here_or_in_shards, calibration_set, calibration_examples, calibrate, collect_shard):
        file = Path(function.__code__.co_filename).relative_to(PACKAGE)
        assert any(file.is_relative_to(part) for part in stage.code), file


def test_a_recipe_that_cannot_be_split_is_refused_before_any_work(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(load("int4-gptq").model_copy(update={"propagate_error": True}).to_yaml())
    whole = BuildConfig(precision="int4", recipe=str(recipe))
    assert chosen_recipe(whole) is not None
    with pytest.raises(UsageError, match="propagate_error") as caught:
        chosen_recipe(whole.model_copy(update={"calibration": CalibrationConfig(shards=2)}))
    assert caught.value.found == "2 shards"


def test_shards_together_save_no_more_than_one_calibration() -> None:
    for shards, share in ((1, 0.5), (2, 0.25)):
        config = BuildConfig(precision="fp8", calibration=CalibrationConfig(saved_share=0.5, shards=shards))
        saving = calibration_options(config, Checkpoint.open(), None, ignore_progress).saving
        assert (saving.share, saving.soonest_s) == (share, SAVED_BY_DEFAULT.soonest_s)
