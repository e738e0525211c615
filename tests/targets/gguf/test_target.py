"""The target gguf refuses what GGUF does not hold before any work, and its parity gate holds in every type."""

from __future__ import annotations

import numpy as np
import pytest

from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.errors import CapabilityError, UsageError
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.targets.gguf import doctor
from r1v_export.targets.gguf.target import GgufTarget
from tests.tiny_models import tiny_spec


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"precision": "fp8"}, r"(?s)no FP8.*int8 has as many bits"),
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
    is_rounded = written.config.targets["gguf"].get("mmproj") == "Q8_0"
    limit = limits["int8" if is_rounded else written.config.precision]
    target, spec = GgufTarget(), written.checkpoint.spec
    engine, reference = target.open(written.folder, spec, "cpu"), ReferenceEngine(load(written.checkpoint))
    size = spec.tiling.tile_size
    pixels = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    expected, found = (each.projector(each.vision(pixels)) for each in (reference, engine))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < limit


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8-smoothquant", "int4-awq", "Q8_0", "Q4_K_M"])
def test_the_size_that_a_dry_run_states_is_about_that_of_the_files(make, precision) -> None:
    written = make("300m", precision)
    schemes = written.artifact.schemes if written.artifact else {}
    stated = GgufTarget().size_bytes(written.config, written.checkpoint.spec, schemes)
    on_disk = sum(path.stat().st_size for path in written.folder.iterdir())
    assert 0.95 * on_disk < stated < on_disk  # all but the keys, of which the vocabulary is most


def _config(**fields) -> BuildConfig:
    return BuildConfig(precision="fp16", targets={"gguf": fields}, parity={"enabled": False})


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"files": "model", "mmproj": "F16"}, "does not write mmproj.gguf"),
        ({"files": "mmproj", "model": "Q4_K_M"}, "does not write model.gguf"),
        ({"model": "Q4_K"}, "Q4_K_M"),
    ],
)
def test_options_that_say_nothing_are_refused(fields, what) -> None:
    with pytest.raises(UsageError, match=what):
        GgufTarget().check(_config(**fields))


def test_one_file_alone_is_built_without_the_gate_that_needs_both() -> None:
    config = _config(files="model")
    GgufTarget().check(config)
    with pytest.raises(UsageError, match="--no-parity"):
        GgufTarget().check(config.model_copy(update={"parity": ParityConfig()}))
    (*_, warning) = GgufTarget().warnings(config, tiny_spec(), {})
    assert "Only model.gguf" in warning


def test_rows_that_k_quants_do_not_divide_are_named_by_what_they_are_stored_as() -> None:
    spec = tiny_spec(language={"hidden_size": 96, "intermediate_size": 256, "num_layers": 1})
    (*_, warning) = GgufTarget().warnings(_config(model="Q4_K_M"), spec, {})
    assert "6 Q5_0, 2 Q8_0" in warning
    assert GgufTarget().warnings(_config(), spec, {}) == GgufTarget().warnings(_config(model="Q8_0"), spec, {})


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({}, None),
        ({"mmproj": "F16"}, None),
        ({"mmproj": "Q8_0"}, "8-bit weights"),
        ({"model": "Q8_0"}, "8-bit weights"),
    ],
)
def test_weights_that_the_target_rounds_have_limits_of_their_own(fields, weights) -> None:
    assert GgufTarget().numerics(_config(**fields), tiny_spec()).own_weights == weights
    both = GgufTarget().numerics(_config(**fields | {"model": "Q4_K_M"}), tiny_spec())
    assert both.own_weights == "4-bit weights"
