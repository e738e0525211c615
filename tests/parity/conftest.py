"""A random model of R1V's architecture, tiny, as reference; and copies of it to damage."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import r1v_export
from r1v_export.model_spec import ModelSpec
from r1v_export.parity.endpoints import Endpoint
from r1v_export.parity.samples import ParitySample, synthetic
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.reference.model import Model, ReferenceEngine
from tests.tiny_models import tiny_spec

TILE = 56


@pytest.fixture(scope="session")
def tokenizer_files() -> Path:
    """The folder of the shipped model, for its tokenizer."""
    return Path(r1v_export.__file__).parent / "nano" / "model"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_files: Path) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_files)


@pytest.fixture(scope="session")
def spec(tokenizer: Tokenizer) -> ModelSpec:
    return tiny_spec(
        vision={"num_layers": 3},
        language={"num_layers": 3, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 1024},
        image_token_id=tokenizer.special_id("<IMG_CONTEXT>"),
    )


@pytest.fixture(scope="session")
def model(spec: ModelSpec) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(2026)
        model = Model(spec)
        # PyTorch's initialization makes nearly equal logits; a trained model is surer of its next token.
        model.language_model.lm_head.weight.data *= 12
    return model


@pytest.fixture(scope="session")
def reference(model: Model, spec: ModelSpec, tokenizer: Tokenizer) -> Endpoint:
    return Endpoint(ReferenceEngine(model), tokenizer, describe_pipeline(spec, tokenizer, {}))


@pytest.fixture(scope="session")
def damaged(reference: Endpoint, model: Model) -> Callable[[Callable[[Model], None]], Endpoint]:
    """Makes a candidate that is the reference with its weights changed by a function."""

    def make(damage: Callable[[Model], None]) -> Endpoint:
        candidate = copy.deepcopy(model)
        with torch.no_grad():
            damage(candidate)
        engine = ReferenceEngine(candidate)
        engine.name = "candidate"
        return replace(reference, engine=engine)

    return make


@pytest.fixture(scope="session")
def samples() -> list[ParitySample]:
    return list(synthetic(5, TILE))
