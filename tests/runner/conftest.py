from __future__ import annotations

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from r1v_export.model_spec import ModelSpec
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.processing.tokenizer_files import AddedToken
from r1v_export.reference.model import Model, ReferenceEngine
from r1v_export.runner.engine_runner import EngineRunner
from tests.tiny_models import tiny_spec

IMAGE_TOKEN = 260
"""`<IMG_CONTEXT>` of `byte_tokenizer`."""


def random_engine(spec: ModelSpec, seed: int = 0) -> ReferenceEngine:
    """The reference with weights wide enough that greedy tokens vary from step to step."""
    torch.manual_seed(seed)
    model = Model(spec)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15 if "embed_tokens" not in name else 1.0)
    return ReferenceEngine(model)


@pytest.fixture(scope="session")
def engine() -> ReferenceEngine:
    return random_engine(tiny_spec(image_token_id=IMAGE_TOKEN, vocab_size=300, max_position_embeddings=1024))


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, and the tokens of R1V3's template behind them; `<think>` is plain text."""
    alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = tokenizers.Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    names = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
    return Tokenizer(plain, {name: AddedToken(256 + index, True) for index, name in enumerate(names)})


@pytest.fixture(scope="session")
def runner(engine) -> EngineRunner:
    tokenizer = byte_tokenizer()
    return EngineRunner(engine, tokenizer, describe_pipeline(engine.model.spec, tokenizer, {}))
