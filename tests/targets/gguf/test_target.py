"""The target gguf refuses what GGUF does not hold before any work, and its parity gate holds in every type."""

from __future__ import annotations

import numpy as np
import pytest

from r1v_export.config import BuildConfig
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.targets.gguf import doctor
from r1v_export.targets.gguf.target import GgufTarget


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"precision": "fp8"}, "no FP8"),
        ({"precision": "int8", "recipe": "int8-kv"}, "no scales of a key-value cache"),
        ({"precision": "int4", "recipe": "mixed"}, "does not hold this quantization"),
    ],
)
def test_what_it_cannot_hold_is_refused_before_any_work(fields, what) -> None:
    with pytest.raises(UsageError, match=what):
        GgufTarget().check(BuildConfig(targets=("gguf",), **fields))


def test_without_the_package_the_build_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda *names: None)
    with pytest.raises(CapabilityError, match="pip install 'gguf"):
        GgufTarget().check(BuildConfig(precision="fp16", targets=("gguf",)))


def test_every_type_computes_the_model_up_to_its_own_rounding(written) -> None:
    limits = {"fp32": 2e-3, "bf16": 2e-3, "fp16": 2e-3, "int8": 3e-2, "int4": 0.3}
    target, spec = GgufTarget(), written.checkpoint.spec
    engine, reference = target.open(written.folder, spec, "cpu"), ReferenceEngine(load(written.checkpoint))
    size = spec.tiling.tile_size
    pixels = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    expected, found = (each.projector(each.vision(pixels)) for each in (reference, engine))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < limits[written.config.precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8-smoothquant"])
def test_the_size_that_a_dry_run_states_is_about_that_of_the_files(make, precision) -> None:
    written = make("300m", precision)
    schemes = written.artifact.schemes if written.artifact else {}
    stated = GgufTarget().size_bytes(written.config, written.checkpoint.spec, schemes)
    on_disk = sum(path.stat().st_size for path in written.folder.iterdir())
    assert 0.7 * on_disk < stated < 1.1 * on_disk
