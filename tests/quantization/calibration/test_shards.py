"""Distributed calibration: the merge of all shards is the calibration of the whole set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import BundleError, UsageError
from r1v_export.quantization.artifact.artifact import SCALES, Artifact
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import Shard
from r1v_export.quantization.calibration.shards import STATISTICS, collect_shard, merge
from r1v_export.quantization.recipe import Recipe
from tests.quantization.calibration.test_calibrate import Stopped, stop_after
from tests.quantization.calibration_cases import AWQ_RECIPE, KV_RECIPE, files_of, small_set, with_weights

COUNT = 3
SAMPLES = 4


def collected_shard(checkpoint: Checkpoint, recipe: Recipe, folder: Path, index: int, **options: Any) -> Path:
    calibration = small_set(checkpoint, SAMPLES, shard=Shard(index, COUNT))
    collect_shard(checkpoint, recipe, calibration, folder / str(index), CalibrationOptions(**options))
    return folder / str(index)


def test_a_recipe_that_propagates_errors_is_refused(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="propagate_error") as caught:
        collected_shard(synth_checkpoint, KV_RECIPE.model_copy(update={"propagate_error": True}), tmp_path, 0)
    assert caught.value.found == "shard 1/3"
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def shards(synth_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Not to be written to."""
    folder = tmp_path_factory.mktemp("shards")
    return [collected_shard(synth_checkpoint, KV_RECIPE, folder, index) for index in range(COUNT)]


def copied(shard: Path, folder: Path) -> Path:
    for name, content in files_of(shard).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_merged_shards_give_the_scales_of_one_run_bit_for_bit(
    synth_checkpoint: Checkpoint, tmp_path: Path, shards: Sequence[Path]
) -> None:
    calibrate(synth_checkpoint, KV_RECIPE, small_set(synth_checkpoint, SAMPLES), tmp_path / "whole")
    merge(synth_checkpoint, [shards[2], shards[0], shards[1]], tmp_path / "merged")
    whole, merged = files_of(tmp_path / "whole"), files_of(tmp_path / "merged")
    assert merged.keys() == whole.keys()
    assert {name: merged[name] == whole[name] for name in whole if name != "stats.json"} == {
        name: True for name in whole if name != "stats.json"
    }
    # Means are sums in another order; everything else of the record is the same.
    for files in (merged, whole):
        stats = json.loads(files["stats.json"])
        for entry in stats["inputs"].values():
            entry["mean"] = round(entry["mean"], 5)
        files["stats.json"] = json.dumps(stats).encode()
    assert merged["stats.json"] == whole["stats.json"]


def test_merged_gram_matrices_give_the_same_awq_scales_up_to_rounding(
    synth_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    calibrate(synth_checkpoint, AWQ_RECIPE, small_set(synth_checkpoint, SAMPLES), tmp_path / "whole")
    folders = [collected_shard(synth_checkpoint, AWQ_RECIPE, tmp_path, index) for index in range(COUNT)]
    merge(synth_checkpoint, folders, tmp_path / "merged")
    whole, merged = (Artifact.open(tmp_path / name, synth_checkpoint) for name in ("whole", "merged"))
    for name, linear in whole.linears():
        same = torch.isclose(linear.dequantize(), merged.linear(name).dequantize(), rtol=1e-3, atol=1e-6)
        assert same.float().mean() > 0.99


def test_an_interrupted_shard_goes_on_and_ends_with_the_same_bytes(
    synth_checkpoint: Checkpoint, tmp_path: Path, shards: Sequence[Path]
) -> None:
    with pytest.raises(Stopped):
        collected_shard(synth_checkpoint, KV_RECIPE, tmp_path, 1, on_progress=stop_after(6))
    with pytest.raises(BundleError, match="no shard of a calibration here"):
        merge(synth_checkpoint, [shards[0], tmp_path / "1", shards[2]], tmp_path / "merged")
    assert files_of(collected_shard(synth_checkpoint, KV_RECIPE, tmp_path, 1)) == files_of(shards[1])
    collected_shard(synth_checkpoint, KV_RECIPE, tmp_path, 1, on_progress=stop_after(0))  # which is done already


def test_an_interrupted_merge_goes_on_and_ends_with_the_same_bytes(
    synth_checkpoint: Checkpoint, tmp_path: Path, shards: Sequence[Path]
) -> None:
    merge(synth_checkpoint, shards, tmp_path / "whole")
    with pytest.raises(Stopped):
        merge(synth_checkpoint, shards, tmp_path / "merged", CalibrationOptions(on_progress=stop_after(3)))
    assert not (tmp_path / "merged").exists()
    merge(synth_checkpoint, shards, tmp_path / "merged")
    assert files_of(tmp_path / "merged") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("chosen", [(0, 1), (0, 1, 1), (1,), (0, 1, 2, 2)])
def test_shards_that_are_missing_or_doubled_are_reported(
    synth_checkpoint: Checkpoint, tmp_path: Path, shards: Sequence[Path], chosen: Sequence[int]
) -> None:
    folders = [copied(shards[index], tmp_path / str(n)) for n, index in enumerate(chosen)]
    with pytest.raises(UsageError, match="incomplete or repeated") as caught:
        merge(synth_checkpoint, folders, tmp_path / "merged")
    assert caught.value.expected == "1/3, 2/3, 3/3"
    assert caught.value.found == ", ".join(f"{index + 1}/3" for index in chosen)


def test_shards_of_other_recipes_are_reported(
    synth_checkpoint: Checkpoint, tmp_path: Path, shards: Sequence[Path]
) -> None:
    other = collected_shard(synth_checkpoint, AWQ_RECIPE, tmp_path, 1)
    with pytest.raises(UsageError, match="the recipe differs"):
        merge(synth_checkpoint, [shards[0], other, shards[2]], tmp_path / "merged")


def test_statistics_of_another_checkpoint_are_refused(
    synth_checkpoint: Checkpoint, tmp_path: Path, shards: Sequence[Path]
) -> None:
    other = with_weights(synth_checkpoint, tmp_path / "other", {"mlp1.3.bias": 0.5})
    with pytest.raises(BundleError, match="another checkpoint"):
        merge(other, shards, tmp_path / "merged")


def damage_truncate(folder: Path) -> None:
    path = next((folder / STATISTICS).iterdir())
    path.write_bytes(path.read_bytes()[:-1])


def damage_remove(folder: Path) -> None:
    (folder / STATISTICS / "mlp1.safetensors").unlink()


def damage_key(folder: Path) -> None:
    (folder / "key.json").write_text("{}")


@pytest.mark.parametrize("damage", [damage_truncate, damage_remove, damage_key])
def test_a_damaged_shard_is_named(
    synth_checkpoint: Checkpoint, tmp_path: Path, shards: Sequence[Path], damage: Any
) -> None:
    damaged = copied(shards[1], tmp_path / "damaged")
    damage(damaged)
    with pytest.raises(BundleError, match=r"shard.* (is|are) damaged") as caught:
        merge(synth_checkpoint, [shards[0], damaged, shards[2]], tmp_path / "merged")
    assert str(damaged) in str(caught.value)
    assert not (tmp_path / "merged" / SCALES).exists()
