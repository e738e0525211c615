"""A small model that up to eight GPUs can share, and its quantized forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.quantization.artifact.artifact import Artifact
from tests.targets.tensorrt_llm.cases import make_artifact, of

SIZES = {
    "llm_config.hidden_size": 1024,
    "llm_config.num_attention_heads": 32,
    "llm_config.num_key_value_heads": 16,
    "llm_config.intermediate_size": 1024,
    "llm_config.vocab_size": 523,
}
"""Every count a multiple of 8 GPUs times a group of 128, but the vocabulary."""


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("wide") / "model"
    return Checkpoint.open(synthesize(folder, preset="nano", vision_layers=1, language_layers=2, overrides=SIZES))


@pytest.fixture(scope="session")
def quantized(wide: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """The wide model's calibration in one of `cases.SCHEMES`, or with a cache of that type ("fp8-kv", "int8-kv")."""
    made: dict[str, Artifact] = {}

    def artifact(scheme: str) -> Artifact:
        if scheme not in made:
            folder: Path = tmp_path_factory.mktemp("artifacts") / scheme
            weights = scheme.removesuffix("-kv")
            made[scheme] = make_artifact(wide, of(weights, kv_cache="null" if weights == scheme else weights), folder)
        return made[scheme]

    return artifact
