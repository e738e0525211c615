"""The target compressed-tensors refuses what its format does not hold before any work."""

from __future__ import annotations

import pytest

from r1v_export.config import BuildConfig
from r1v_export.errors import UsageError
from r1v_export.targets.compressed_tensors.target import CompressedTensorsTarget


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"precision": "bf16"}, "is a quantized one"),
        ({"precision": "int8", "recipe": "int8-kv"}, "no INT8 key-value cache"),
        ({"precision": "int4", "recipe": "w4a8"}, "does not hold this quantization"),
    ],
)
def test_what_it_cannot_hold_is_refused_before_any_work(fields, what):
    with pytest.raises(UsageError, match=what):
        CompressedTensorsTarget().check(BuildConfig(targets=("compressed-tensors",), **fields))
