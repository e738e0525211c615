"""The key of a calibration distinguishes everything that decides its numbers."""

from __future__ import annotations

from typing import Any

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.quantization.calibration.dataset import Shard
from r1v_export.quantization.calibration.key import CalibrationKey, make_key
from r1v_export.quantization.recipe import load
from tests.quantization.calibration_cases import small_set


@pytest.fixture(scope="module")
def key(synth_checkpoint: Checkpoint) -> CalibrationKey:
    return make_key("a" * 64, load("fp8"), "float32", "float32", small_set(synth_checkpoint, 2))


def test_equal_calibrations_have_equal_fingerprints(synth_checkpoint: Checkpoint, key: CalibrationKey) -> None:
    again = make_key("a" * 64, load("fp8"), "float32", "float32", small_set(synth_checkpoint, 2))
    assert (again, again.fingerprint) == (key, key.fingerprint)


@pytest.mark.parametrize(
    "change",
    [
        {"producer": "another version"},
        {"checkpoint": "b" * 64},
        {"recipe": load("fp8-kv")},
        {"compute": "bfloat16"},
        {"matmul": "bfloat16"},
        {"data": "0" * 64},
        {"image_policy": "published"},
        {"shard": str(Shard(0, 2))},
        {"samples": ()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_changes_the_fingerprint(key: CalibrationKey, change: dict[str, Any]) -> None:
    assert key.model_copy(update=change).fingerprint != key.fingerprint


def test_no_field_is_missing_from_that_test(key: CalibrationKey) -> None:
    fields = {"producer", "checkpoint", "recipe", "compute", "matmul", "data", "image_policy", "shard", "samples"}
    assert set(type(key).model_fields) == fields


def test_samples_are_listed_by_name_hash_and_size(synth_checkpoint: Checkpoint, key: CalibrationKey) -> None:
    samples = small_set(synth_checkpoint, 2).samples
    assert [(s.name, s.sha256, s.tokens, s.tiles) for s in key.samples] == [
        (s.name, s.sha256, len(s.token_ids), s.tiles) for s in samples
    ]
